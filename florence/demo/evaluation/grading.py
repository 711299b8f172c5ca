"""Grades answers of the fifteen tasks: computes each task's figures.

The metrics are those of `florence.evaluation`. Knows nothing about models: it gets questions, scenes and
typed results. All figures are between 0 and 1 and higher is better, except for `CIDEr` (0 to 10), `invented`
(share of absent things for which boxes were answered), `CER` (character error rate) and `ECE` (expected
calibration error of the scores, 0 is best).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from florence.demo.world.ground_truth import Question, full
from florence.demo.world.scenes import Scene, Thing
from florence.evaluation.files.examples import Answered, Example, TrueThing, Truth
from florence.evaluation.measures.boxes import measure_boxes, measure_grounding, pooled
from florence.evaluation.measures.calibration import Judged, expected_calibration_error
from florence.evaluation.measures.captions import CaptionScores
from florence.evaluation.measures.figures import Evaluation, Figures
from florence.evaluation.measures.masks import measure_outlines, measure_regions
from florence.evaluation.measures.writing import (
    measure_exact,
    measure_reading,
    measure_writing,
    text_of,
)
from florence.types.results import Result

_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")


@dataclass(frozen=True)
class Graded:
    """One question with its answer."""

    scene: Scene
    question: Question
    result: Result


@dataclass(frozen=True)
class Grade:
    """A task's figures, and each scored thing of its answers."""

    figures: Figures
    judged: Sequence[Judged]


def grade(task: str, answers: Sequence[Graded]) -> Grade:
    """The grade of a task from its answers: their number, the task's figures (nan where there is nothing to
    measure), ECE.

    Raises `KeyError` for an unknown task, `MissingLibrary` without the extra "evaluate".
    """
    label, measure = _GRADES[task]
    rows = [_row(number, one, label) for number, one in enumerate(answers)]
    evaluation = measure(rows)
    questions: Figures = {"questions": len(answers)}
    error = {"ECE": expected_calibration_error(evaluation.judged)}
    return Grade(questions | evaluation.figures() | error, evaluation.judged)


_Label = Callable[[Graded, int], str]
"""The label that a task gives to a thing, from the answer and the thing's index in it."""


def _row(number: int, one: Graded, label: _Label) -> Answered:
    """The answered question, as if about a separate picture."""
    things = [one.scene.things[index] for index in one.question.things]
    true = [_true(thing, label(one, place)) for place, thing in enumerate(things)]
    truth = Truth(tuple(true), texts=(_LOCATIONS.sub(" ", one.question.answer).strip(),))
    size = one.scene.width, one.scene.height
    name = f"scene {number}"
    return Answered(Example(name, Path(name), truth, one.question.text, size), one.result, size)


def _true(thing: Thing, label: str) -> TrueThing:
    return TrueThing(label, thing.box, [thing.outline.ravel().tolist()])


def _named(name: Callable[[Thing], str]) -> _Label:
    return lambda one, place: name(one.scene.things[one.question.things[place]])


def _phrase(one: Graded, place: int) -> str:
    """The question's phrase, as the right answer repeats it."""
    return _LOCATIONS.split(one.question.answer)[place]


def _caption(rows: Sequence[Answered]) -> Evaluation:
    """CIDEr, and the CIDEr of the right captions themselves: short ones don't reach 10."""
    exact, pictures = measure_exact(rows), range(len(rows))
    said, right = [text_of(row) for row in rows], [row.example.truth.texts for row in rows]
    scores = CaptionScores(pictures, said, right, scores=["CIDEr"])
    best = CaptionScores(pictures, [text for (text,) in right], right, scores=["CIDEr"], ending="_of_truth")
    return Evaluation(rows, [*exact.parts, scores, best], exact.quality, exact.judged)


_NO_LABEL: Final = _named(lambda thing: "")
_GRADES: Final[dict[str, tuple[_Label, Callable[[Sequence[Answered]], Evaluation]]]] = {
    "<CAPTION>": (_NO_LABEL, _caption),
    "<DETAILED_CAPTION>": (_NO_LABEL, _caption),
    "<MORE_DETAILED_CAPTION>": (_NO_LABEL, _caption),
    "<CAPTION_TO_PHRASE_GROUNDING>": (_phrase, measure_grounding),
    "<OD>": (_named(lambda thing: thing.shape), measure_boxes),
    "<DENSE_REGION_CAPTION>": (_named(full), measure_boxes),
    "<REGION_PROPOSAL>": (_NO_LABEL, measure_boxes),
    "<OCR>": (_NO_LABEL, measure_reading),
    "<OCR_WITH_REGION>": (_named(lambda thing: thing.text), measure_writing),
    "<REFERRING_EXPRESSION_SEGMENTATION>": (_NO_LABEL, measure_outlines),
    "<REGION_TO_SEGMENTATION>": (_named(lambda thing: thing.shape), measure_regions),
    "<OPEN_VOCABULARY_DETECTION>": (_NO_LABEL, pooled),
    "<REGION_TO_CATEGORY>": (_NO_LABEL, measure_exact),
    "<REGION_TO_DESCRIPTION>": (_NO_LABEL, measure_exact),
    "<REGION_TO_OCR>": (_NO_LABEL, measure_reading),
}
