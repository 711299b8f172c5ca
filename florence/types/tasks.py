"""The fifteen tasks of Florence-2: token, prompt sentence, input besides the picture, kind of answer.

Knows nothing about pictures, pixels, tokenizers or how an answer is parsed. A region is only text here;
`regions.region_text` makes that text from pixels.

The sentences are those that Microsoft's processor puts in place of the task tokens. It deletes a repeated
task token, or lets another one win, without a word; here every task token inside the text is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from florence.errors import TaskError, quote

INPUT_SLOT: Final = "{input}"
_TEXT_EXAMPLE = "a green car"
_REGION_EXAMPLE = "<loc_52><loc_332><loc_932><loc_774>"


class Input(StrEnum):
    """What a task takes besides the picture."""

    NONE = "none"
    TEXT = "text"
    REGION = "region"


class Kind(StrEnum):
    """Which result a task answers with."""

    TEXT = "text"
    BOXES = "boxes"
    QUADS = "quads"
    POLYGONS = "polygons"
    BOXES_OR_POLYGONS = "boxes_or_polygons"


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the model.

    token: how the original names it (`<OD>`). name: the typed endpoint's path (`object_detection`).
    prompt: the sentence the model reads, with `{input}` where the text or the region goes.
    example: an input that the task accepts, None where it takes none.
    """

    token: str
    name: str
    prompt: str
    input: Input
    kind: Kind
    summary: str
    example: str | None


def get_task(token_or_name: str) -> Task:
    """The task called `<OD>` or `object_detection`; TaskError naming all fifteen when there is none."""
    task = TASKS.get(token_or_name) or TASKS_BY_NAME.get(token_or_name)
    if task is None:
        raise TaskError(f"unknown task {quote(token_or_name)}; the tasks are {', '.join(TASKS)}")
    return task


def check_input(task: Task, given: str | Sequence[float] | None) -> None:
    """Check what is given beside the picture: a text, or a region as numbers or text. Blank text counts as
    none.

    Raises TaskError when the task needs text or a region and there is none, when it takes none and there is
    some, when it takes a text and gets numbers, or when a task token stands inside the text.
    """
    absent = given is None or (isinstance(given, str) and not given.strip())
    if task.input is Input.NONE:
        if not absent:
            raise TaskError(f"{task.token} takes no text, got {quote(given)}; leave the text out")
        return
    if absent:
        raise TaskError(_missing_input(task))
    if not isinstance(given, str):
        if task.input is Input.TEXT:
            raise TaskError(f"{task.token} takes a text, not a region, for example {task.example!r}")
        return
    inside = next((token for token in TASKS if token in given), None)
    if inside is not None:
        raise TaskError(
            f"the text of {task.token} must not hold a task token, but {inside} stands in it; "
            f"send only the input, for example {task.example!r}"
        )


def build_prompt(task: Task, text: str | None = None) -> str:
    """The sentence the model reads for a task; the text, or the region as `<loc_n>`, goes in unstripped.
    Raises as `check_input`."""
    check_input(task, text)
    if task.input is Input.NONE:
        return task.prompt
    before, after = task.prompt.split(INPUT_SLOT)
    return before + str(text) + after


def _missing_input(task: Task) -> str:
    if task.input is Input.TEXT:
        return f"{task.token} needs a text, for example {task.example!r}"
    return (
        f"{task.token} needs a region: x1, y1, x2, y2 in pixels, for example '52, 332, 932, 774', "
        f"or four locations, for example {task.example!r}"
    )


def _plain(token: str, name: str, prompt: str, kind: Kind, summary: str) -> Task:
    return Task(token, name, prompt, Input.NONE, kind, summary, None)


_ALL = (
    _plain(
        "<CAPTION>", "caption", "What does the image describe?", Kind.TEXT,
        "A short caption of the picture.",
    ),
    _plain(
        "<DETAILED_CAPTION>", "detailed_caption", "Describe in detail what is shown in the image.", Kind.TEXT,
        "A caption of a few sentences.",
    ),
    _plain(
        "<MORE_DETAILED_CAPTION>", "more_detailed_caption",
        "Describe with a paragraph what is shown in the image.", Kind.TEXT,
        "A paragraph about the picture.",
    ),
    Task(
        "<CAPTION_TO_PHRASE_GROUNDING>", "caption_to_phrase_grounding",
        "Locate the phrases in the caption: {input}", Input.TEXT, Kind.BOXES,
        "A box for each thing that a given caption names.",
        "A green car parked in front of a yellow building.",
    ),
    _plain(
        "<OD>", "object_detection", "Locate the objects with category name in the image.", Kind.BOXES,
        "A box and a category for each object.",
    ),
    _plain(
        "<DENSE_REGION_CAPTION>", "dense_region_caption",
        "Locate the objects in the image, with their descriptions.", Kind.BOXES,
        "A box and a short description for each object.",
    ),
    _plain(
        "<REGION_PROPOSAL>", "region_proposal", "Locate the region proposals in the image.", Kind.BOXES,
        "Boxes around whatever stands out, without labels.",
    ),
    _plain(
        "<OCR>", "ocr", "What is the text in the image?", Kind.TEXT,
        "The text that stands in the picture.",
    ),
    _plain(
        "<OCR_WITH_REGION>", "ocr_with_region", "What is the text in the image, with regions?", Kind.QUADS,
        "The text that stands in the picture, piece by piece, with a quadrilateral around each.",
    ),
    Task(
        "<REFERRING_EXPRESSION_SEGMENTATION>", "referring_expression_segmentation",
        "Locate {input} in the image with mask", Input.TEXT, Kind.POLYGONS,
        "The outline of the thing that a given text describes.", _TEXT_EXAMPLE,
    ),
    Task(
        "<REGION_TO_SEGMENTATION>", "region_to_segmentation",
        "What is the polygon mask of region {input}", Input.REGION, Kind.POLYGONS,
        "The outline of the thing in a given region.", _REGION_EXAMPLE,
    ),
    Task(
        "<OPEN_VOCABULARY_DETECTION>", "open_vocabulary_detection",
        "Locate {input} in the image.", Input.TEXT, Kind.BOXES_OR_POLYGONS,
        "Boxes, or outlines, of the things that a given text names.", _TEXT_EXAMPLE,
    ),
    Task(
        "<REGION_TO_CATEGORY>", "region_to_category", "What is the region {input}?", Input.REGION, Kind.TEXT,
        "The category of the thing in a given region.", _REGION_EXAMPLE,
    ),
    Task(
        "<REGION_TO_DESCRIPTION>", "region_to_description",
        "What does the region {input} describe?", Input.REGION, Kind.TEXT,
        "A description of the thing in a given region.", _REGION_EXAMPLE,
    ),
    Task(
        "<REGION_TO_OCR>", "region_to_ocr", "What text is in the region {input}?", Input.REGION, Kind.TEXT,
        "The text that stands in a given region.", _REGION_EXAMPLE,
    ),
)  # fmt: skip

TASKS: Final[Mapping[str, Task]] = MappingProxyType({task.token: task for task in _ALL})
TASKS_BY_NAME: Final[Mapping[str, Task]] = MappingProxyType({task.name: task for task in _ALL})

TRITON_TASKS: Final = (
    "<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OD>",
    "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OCR>", "<OCR_WITH_REGION>",
)  # fmt: skip
"""Those that deployments behind Triton have."""
