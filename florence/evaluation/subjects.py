"""The subjects that can be evaluated: for each one the files it needs, the task, and the metrics.

Knows nothing about models or command lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from florence.errors import RequestError, TaskError
from florence.evaluation.files.coco_file import CocoTruth
from florence.evaluation.files.coco_questions import CocoQuestions
from florence.evaluation.files.examples import Answered, Example
from florence.evaluation.files.text_questions import document_questions, prompt_rows, vqa_questions
from florence.evaluation.measures.boxes import (
    measure_boxes,
    measure_dense,
    measure_expressions,
    measure_grounding,
    measure_open_vocabulary,
)
from florence.evaluation.measures.figures import Evaluation
from florence.evaluation.measures.masks import measure_outlines, measure_regions
from florence.evaluation.measures.writing import (
    measure_answers,
    measure_captions,
    measure_exact,
    measure_reading,
    measure_values,
    measure_writing,
)
from florence.types.tasks import Kind, Task

Measure = Callable[[Sequence[Answered]], Evaluation]


@dataclass(frozen=True, slots=True)
class Files:
    """The files with the ground truth. `images`: the directory of the pictures."""

    images: Path
    coco: Path | None = None
    questions: Path | None = None
    annotations: Path | None = None
    rows: Path | None = None
    all_classes: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """`task`: the default task's name; None if it must be given. `needs`: the field of `Files` that the
    subject reads. `ask`: makes the questions for a task. `measures`: the metrics for each kind of answer."""

    name: str
    task: str | None
    needs: str
    ask: Callable[[Files, Task], Iterator[Example]]
    measures: Mapping[Kind, Measure]

    def measure_for(self, task: Task) -> Measure:
        """The metrics for this task's answers. Raises `TaskError` for a task with another kind of answer."""
        if task.kind not in self.measures:
            kinds = " or ".join(self.measures)
            raise TaskError(f"{task.token} answers with {task.kind}; this subject measures {kinds}")
        return self.measures[task.kind]

    def read(self, files: Files, task: Task) -> list[Example]:
        """Read the questions. Raises `RequestError` where the files are invalid, a picture is missing, or
        there are no questions."""
        if getattr(files, self.needs) is None:
            raise RequestError(f"this needs --{self.needs}")
        if not files.images.is_dir():
            raise RequestError(f"there is no directory {str(files.images)!r} for --images")
        questions = list(self.ask(files, task))
        if not questions:
            raise RequestError(f"{getattr(files, self.needs)} has nothing to ask about for this subject")
        _check_pictures(questions, files.images)
        return questions


def _check_pictures(questions: Sequence[Example], images: Path) -> None:
    paths = {example.path: example.picture for example in questions}
    missing = [name for path, name in paths.items() if not path.is_file()]
    if missing:
        raise RequestError(
            f"{len(missing)} of {len(paths)} pictures are not in {images}, the first is {missing[0]!r}"
        )


def _coco_by_task(
    ask: Callable[[CocoQuestions, Task], Iterator[Example]],
) -> Callable[[Files, Task], Iterator[Example]]:
    def asked(files: Files, task: Task) -> Iterator[Example]:
        truth = CocoTruth(files.coco or Path())
        return ask(CocoQuestions(truth, files.images, files.all_classes), task)

    return asked


def _coco(ask: Callable[[CocoQuestions], Iterator[Example]]) -> Callable[[Files, Task], Iterator[Example]]:
    return _coco_by_task(lambda coco, task: ask(coco))


def _classes(coco: CocoQuestions, task: Task) -> Iterator[Example]:
    return coco.classes() if task.labelled else coco.unlabelled()


def _vqa(files: Files, task: Task) -> Iterator[Example]:
    questions = files.questions or Path()
    if files.annotations is None:
        return document_questions(questions, files.images)
    return vqa_questions(questions, files.annotations, files.images)


_BOXES: Final = (Kind.BOXES, Kind.BOXES_OR_POLYGONS)

_ALL: Final = (
    Subject(
        "captions", "caption", "coco", _coco(CocoQuestions.captions), {Kind.TEXT: measure_captions}
    ),
    Subject(
        "detection", "object_detection", "coco", _coco_by_task(_classes),
        dict.fromkeys(_BOXES, measure_boxes),
    ),
    Subject(
        "dense-captions", "dense_region_caption", "coco", _coco(CocoQuestions.phrases),
        dict.fromkeys(_BOXES, measure_dense),
    ),
    Subject(
        "open-vocabulary", "open_vocabulary_detection", "coco", _coco(CocoQuestions.by_class),
        dict.fromkeys((*_BOXES, Kind.POLYGONS), measure_open_vocabulary),
    ),
    Subject(
        "segmentation", "region_to_segmentation", "coco", _coco(CocoQuestions.regions),
        {Kind.POLYGONS: measure_regions},
    ),
    Subject(
        "grounding", "caption_to_phrase_grounding", "coco", _coco(CocoQuestions.grounding),
        dict.fromkeys(_BOXES, measure_grounding),
    ),
    Subject(
        "referring", "referring_expression_segmentation", "coco",
        _coco_by_task(lambda coco, task: coco.expressions(outlined=task.kind is Kind.POLYGONS)),
        {Kind.POLYGONS: measure_outlines} | dict.fromkeys(_BOXES, measure_expressions),
    ),
    Subject(
        "ocr", "ocr_with_region", "coco", _coco(CocoQuestions.writing),
        {Kind.QUADS: measure_writing, Kind.TEXT: measure_reading},
    ),
    Subject("vqa", None, "questions", _vqa, {Kind.TEXT: measure_answers}),
    Subject(
        "prompts", None, "rows",
        lambda files, task: prompt_rows(files.rows or Path(), files.images, in_words=task.kind is Kind.TEXT),
        {Kind.TEXT: measure_exact, Kind.TAGS: measure_values, Kind.JSON: measure_values},
    ),
)  # fmt: skip

SUBJECTS: Final[Mapping[str, Subject]] = MappingProxyType({each.name: each for each in _ALL})
"""The subjects of `florence evaluate`, by name."""
