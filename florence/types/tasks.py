"""The tasks of Florence-2: token, prompt, input besides the picture, kind of answer.

`TASKS` holds the fifteen built-in tasks; a checkpoint may be loaded with more (`TaskTable.extended`), which
`types.declared` reads. Everything that distinguishes tasks is a field of `Task`: no other module compares
tokens or names.

Knows nothing about pictures, pixels, tokenizers or how an answer is parsed. A region is only text here;
`regions.region_text` makes that text from pixels.

The prompts are those that Microsoft's processor substitutes for task tokens. That processor silently deletes
a repeated task token, or uses another one instead; here a task token inside the text is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final, Literal

from florence.errors import SettingsError, TaskError, quote
from florence.types.regions import LOCATIONS_EXAMPLE, PIXELS_EXAMPLE, REGION_EXAMPLES, Region

INPUT_SLOT: Final = "{input}"
_TEXT_EXAMPLE = "a green car"
_PROMPT: Final = "prompt"
TASKS_PATH: Final = "tasks"
"""Where the service has all tasks by name, those of its checkpoint among them."""


class Input(StrEnum):
    """What a task takes besides the picture."""

    NONE = "none"
    TEXT = "text"
    REGION = "region"


AnswerAs = Literal["text", "tags", "json", "boxes", "quads", "polygons", "boxes_or_polygons"]
"""The values of `Kind` as literals."""


class Kind(StrEnum):
    """Which result a task answers with."""

    TEXT = "text"
    TAGS = "tags"
    JSON = "json"
    BOXES = "boxes"
    QUADS = "quads"
    POLYGONS = "polygons"
    BOXES_OR_POLYGONS = "boxes_or_polygons"

    @property
    def is_text(self) -> bool:
        """Whether the answer is parsed from the text alone, without locations in the picture."""
        return self in (Kind.TEXT, Kind.TAGS, Kind.JSON)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the model.

    `token`: the original's name (`<OD>`). `name`: the typed endpoint's path (`object_detection`). `prompt`:
    the sentence that the model reads, with `{input}` where the text or the region goes. `example`: an input
    that the task accepts, None where it takes none. `example_answer`: a generated text that is possible for
    the task; None: the example of its kind is used. `labelled`: whether boxes and polygons have labels.
    `drops_stop_phrases`: whether boxes whose label names nothing visible (`answers.lexemes`) are left out.
    `scored_by_original`: whether the original's JSON can have scores. `no_repeat_ngram_size`: default for
    requests; None: the checkpoint's. `in_tiles`: the token of the task that is run on each tile of a picture
    and whose answers have locations by which they are merged; empty if the task does not support tiles.
    """

    token: str
    name: str
    prompt: str
    input: Input
    kind: Kind
    summary: str
    example: str | None = None
    example_answer: str | None = None
    labelled: bool = True
    drops_stop_phrases: bool = False
    scored_by_original: bool = False
    no_repeat_ngram_size: int | None = None
    in_tiles: str = ""

    @property
    def is_prompt(self) -> bool:
        """Whether this is a custom prompt, made by `prompt_task`."""
        return self.name == _PROMPT and self.token == self.prompt

    @property
    def built_in(self) -> bool:
        """Whether this is one of the fifteen tasks of Florence-2."""
        return self.token in TASKS and not self.is_prompt

    @property
    def path(self) -> str:
        """The path of its endpoint, without the leading slash."""
        return self.name if self.built_in or self.is_prompt else f"{TASKS_PATH}/{self.name}"


def prompt_task(prompt: str, answer_as: Kind | AnswerAs = Kind.TEXT) -> Task:
    """A task for a custom prompt, which the model reads as it is; the task's token is the prompt.

    Raises `TaskError` for a blank prompt or an unknown kind of answer.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise TaskError(f"a prompt is a text that is not blank, got {quote(prompt)}")
    kind = read_kind(answer_as)
    return Task(prompt, _PROMPT, prompt, Input.NONE, kind, "A custom prompt.", no_repeat_ngram_size=0)


def read_kind(answer_as: object) -> Kind:
    """How the answer to a prompt is read. Raises `TaskError` for an unknown kind."""
    for kind in Kind:
        if kind == answer_as:
            return kind
    raise TaskError(f"answer_as must be one of {', '.join(Kind)}, got {quote(answer_as)}")


def one_input(text: Region | None, region: Region | None, about: str = "") -> Region | None:
    """A task's text or region; None without either. Raises `TaskError`, which begins with `about`, for
    both."""
    if text is not None and region is not None:
        raise TaskError(f"{about}both text and region are given; a task takes one of them")
    return text if region is None else region


TaskSpec = str | Task | tuple[str | Task, Region | None]
"""A task, or its token or name; or a pair of that and its text or region."""


def task_pairs(specs: Iterable[TaskSpec]) -> list[tuple[str | Task, Region | None]]:
    """Each task with its text or region, None without one. Raises `TaskError` for anything that is not a
    `TaskSpec`."""
    if isinstance(specs, str | Task):
        raise TaskError(f"tasks are given as a list, such as ['caption', '<OD>'], got {quote(specs)}")
    pairs = []
    for spec in specs:
        task, given = spec if isinstance(spec, tuple | list) and len(spec) == 2 else (spec, None)
        if not isinstance(task, str | Task):
            raise TaskError(
                "a task is its name or token, or a pair of that and its text or region, such as "
                f"('region_to_ocr', {PIXELS_EXAMPLE}); got {quote(spec)}"
            )
        pairs.append((task, given))
    return pairs


class TaskTable(Mapping[str, Task]):
    """Tasks by token, in order; immutable. `find` and `resolve` also accept names, `match` any spelling."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        """Raises `SettingsError` where a task is malformed, or two share a token or a name."""
        self._by_token: dict[str, Task] = {}
        self._by_key: dict[str, Task] = {}
        self._by_spelling: dict[str, Task] = {}
        for task in tasks:
            _check_task(task)
            for key in (task.token, task.name):
                if key in self._by_key:
                    raise SettingsError(f"two tasks are called {quote(key)}")
                self._by_key[key] = task
                self._by_spelling.setdefault(_plain_key(key), task)
            self._by_token[task.token] = task

    def __getitem__(self, token: str) -> Task:
        return self._by_token[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_token)

    def __len__(self) -> int:
        return len(self._by_token)

    def __hash__(self) -> int:
        return hash(tuple(self.values()))

    def extended(self, tasks: Iterable[Task]) -> TaskTable:
        """A table with these tasks appended. Raises as the constructor does."""
        return TaskTable([*self.values(), *tasks])

    def find(self, token_or_name: str) -> Task | None:
        """The task with this token or name (`<OD>`, `object_detection`); None if there is none."""
        return self._by_key.get(token_or_name)

    def match(self, text: str) -> Task | None:
        """As `find`; the token may lack its brackets, case does not count, and spaces and hyphens count as
        `_` (`od`, `Object detection`)."""
        return self.find(text) or self._by_spelling.get(_plain_key(text))

    def read(self, text: str) -> Task:
        """The task that `match` finds. Raises `TaskError`, as `resolve` does, if there is none."""
        return self.match(text) or self.resolve(text)

    def means(self, text: str, token: str) -> bool:
        """Whether a text is a spelling of the task with this token; the table need not have that task."""
        known = self.match(text)
        return text == token or (
            _plain_key(text) == _plain_key(token) if known is None else known.token == token
        )

    def resolve(self, task: str | Task) -> Task:
        """The task with this token or name (`<OD>`, `object_detection`); a `Task` is returned as it is.

        Raises `TaskError`, which lists all tasks and the most similar one, if there is none.
        """
        found = task if isinstance(task, Task) else self.find(task)
        if found is None:
            raise TaskError(self._unknown(str(task)))
        return found

    def check_input(self, task: Task, given: Region | None) -> None:
        """Check a task's input: a text, or a region as numbers or text. Blank text counts as none.

        Raises `TaskError` if the task needs an input and there is none, if it takes none and there is one, if
        it takes a text and gets numbers, or if the text contains the token of a task.
        """
        absent = given is None or (isinstance(given, str) and not given.strip())
        if task.input is Input.NONE and not absent:
            raise TaskError(f"{task.token} takes no text, got {quote(given)}; leave the text out")
        if task.input is Input.TEXT and (absent or not isinstance(given, str)):
            raise TaskError(f"{task.token} needs a text, for example {task.example!r}, got {quote(given)}")
        if task.input is Input.REGION and absent:
            raise TaskError(f"{task.token} needs a region: {REGION_EXAMPLES}")
        inside = self.token_in(given)
        if inside is not None:
            raise TaskError(
                f"the text of {task.token} must not contain a task token, but it contains {inside}; "
                f"send only the input, for example {task.example!r}"
            )

    def token_in(self, text: object) -> str | None:
        """The first bracketed task token in a text, None without one; tokens without brackets are ordinary
        words."""
        if not isinstance(text, str):
            return None
        return next((token for token in self if token[0] + token[-1] == "<>" and token in text), None)

    def build_prompt(self, task: Task, text: str | None = None) -> str:
        """The sentence that the model reads for a task; `text`: the text, or the region as `<loc_n>`,
        inserted unstripped. Raises as `check_input`."""
        self.check_input(task, text)
        return task.prompt if task.input is Input.NONE else task.prompt.replace(INPUT_SLOT, str(text))

    def _unknown(self, wanted: str) -> str:
        inside = self.token_in(wanted)
        if inside is not None and wanted.strip() != inside:
            return (
                f"unknown task {quote(wanted)}; send {inside} as the task, and its text or region separately "
                "(TEXT_PROMPT in v2)"
            )
        plain = self._by_spelling
        close = get_close_matches(_plain_key(wanted[:100]), plain, n=1)
        hint = "".join(f"; did you mean {plain[key].token} or {plain[key].name}? The" for key in close)
        known = ", ".join(f"{task.token} or {task.name}" for task in self.values())
        return f"unknown task {quote(wanted)}{hint or '; the'} tasks are {known}"


def _plain_key(key: str) -> str:
    return re.sub(r"[\s_-]+", "_", key.strip().strip("<>").lower())


def _check_task(task: Task) -> None:
    token, slots = quote(task.token), int(task.input is not Input.NONE)
    if not task.token.strip():
        raise SettingsError(f"the task {quote(task.name)} has no token")
    if task.name == _PROMPT:
        raise SettingsError(f"{token} can't be named {_PROMPT!r}: that name is reserved for custom prompts")
    if not task.name.isidentifier():
        raise SettingsError(f"the name of {token} must be letters, digits and _, got {quote(task.name)}")
    if task.prompt.count(INPUT_SLOT) != slots:
        raise SettingsError(f"the prompt of {token} must hold {('no', 'one')[slots]} {INPUT_SLOT}")


_ALL = (
    Task("<CAPTION>", "caption", "What does the image describe?", Input.NONE, Kind.TEXT,
         "A short caption of the picture."),
    Task("<DETAILED_CAPTION>", "detailed_caption", "Describe in detail what is shown in the image.",
         Input.NONE, Kind.TEXT, "A caption of a few sentences."),
    Task("<MORE_DETAILED_CAPTION>", "more_detailed_caption",
         "Describe with a paragraph what is shown in the image.", Input.NONE, Kind.TEXT,
         "A paragraph about the picture."),
    Task("<CAPTION_TO_PHRASE_GROUNDING>", "caption_to_phrase_grounding",
         "Locate the phrases in the caption: {input}", Input.TEXT, Kind.BOXES,
         "A box for each thing named in a given caption.",
         "A green car parked in front of a yellow building.", drops_stop_phrases=True),
    Task("<OD>", "object_detection", "Locate the objects with category name in the image.", Input.NONE,
         Kind.BOXES, "A box and a category for each object.", scored_by_original=True, in_tiles="<OD>"),
    Task("<DENSE_REGION_CAPTION>", "dense_region_caption",
         "Locate the objects in the image, with their descriptions.", Input.NONE, Kind.BOXES,
         "A box and a short description for each object.", scored_by_original=True,
         in_tiles="<DENSE_REGION_CAPTION>"),
    Task("<REGION_PROPOSAL>", "region_proposal", "Locate the region proposals in the image.", Input.NONE,
         Kind.BOXES, "Boxes around everything prominent, without labels.", labelled=False,
         in_tiles="<REGION_PROPOSAL>"),
    Task("<OCR>", "ocr", "What is the text in the image?", Input.NONE, Kind.TEXT,
         "The text in the picture.", in_tiles="<OCR_WITH_REGION>"),
    Task("<OCR_WITH_REGION>", "ocr_with_region", "What is the text in the image, with regions?", Input.NONE,
         Kind.QUADS,
         "The text in the picture, piece by piece, with a quadrilateral around each piece.",
         in_tiles="<OCR_WITH_REGION>"),
    Task("<REFERRING_EXPRESSION_SEGMENTATION>", "referring_expression_segmentation",
         "Locate {input} in the image with mask", Input.TEXT, Kind.POLYGONS,
         "Polygons around the thing that a given text describes.", _TEXT_EXAMPLE, labelled=False),
    Task("<REGION_TO_SEGMENTATION>", "region_to_segmentation", "What is the polygon mask of region {input}",
         Input.REGION, Kind.POLYGONS, "Polygons around the thing in a given region.", LOCATIONS_EXAMPLE,
         labelled=False),
    Task("<OPEN_VOCABULARY_DETECTION>", "open_vocabulary_detection", "Locate {input} in the image.",
         Input.TEXT, Kind.BOXES_OR_POLYGONS, "Boxes or polygons around the things that a given text names.",
         _TEXT_EXAMPLE, in_tiles="<OPEN_VOCABULARY_DETECTION>"),
    Task("<REGION_TO_CATEGORY>", "region_to_category", "What is the region {input}?", Input.REGION,
         Kind.TEXT, "The category of the thing in a given region.", LOCATIONS_EXAMPLE,
         example_answer="car"),
    Task("<REGION_TO_DESCRIPTION>", "region_to_description", "What does the region {input} describe?",
         Input.REGION, Kind.TEXT, "A description of the thing in a given region.", LOCATIONS_EXAMPLE),
    Task("<REGION_TO_OCR>", "region_to_ocr", "What text is in the region {input}?", Input.REGION, Kind.TEXT,
         "The text in a given region.", LOCATIONS_EXAMPLE),
)  # fmt: skip

TASKS: Final = TaskTable(_ALL)
"""The built-in tasks."""

TRITON_TASKS: Final = (
    "<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OD>",
    "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OCR>", "<OCR_WITH_REGION>",
)  # fmt: skip
"""The tasks that the replaced Triton deployments offer."""
