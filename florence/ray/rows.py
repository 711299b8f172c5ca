"""Rows of Ray Data: jobs on their way to an actor, and outcomes on their way back.

Jobs are Python objects in a pandas block, which Ray serializes. Outcomes are Arrow: as the columns of a file
of answers, or as the lines of one. Knows nothing about clusters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import pandas
import pyarrow

from florence.answers.columns import answer_schema, to_columns
from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_line, failure_line
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Job, QuestionOutcome
from florence.errors import FlorenceError

JOB: Final = "job"
Outcomes: TypeAlias = tuple[Job, Sequence[QuestionOutcome]]
LINES: Final = pyarrow.schema(
    {"key": pyarrow.string(), "line": pyarrow.string(), "failure": pyarrow.string()}
)
"""`key`: identifies an answer. One of `line` and `failure` is null, the other one ends in a line feed."""


def job_block(jobs: Sequence[Job]) -> pandas.DataFrame:
    """A block with a row for each job."""
    return pandas.DataFrame({JOB: pandas.Series(list(jobs), dtype=object)})


def as_lines(outcomes: Iterable[Outcomes]) -> pyarrow.Table:
    """A row of `LINES` for each question."""
    rows = [
        {
            "key": json.dumps([item.key, *question.key]),
            "line": None if isinstance(outcome, FlorenceError) else answer_line(item, question, outcome),
            "failure": _failure(item, question, outcome) if isinstance(outcome, FlorenceError) else None,
        }
        for item, question, outcome in _each(outcomes)
    ]
    return pyarrow.Table.from_pylist(rows, schema=LINES)


def as_columns(outcomes: Iterable[Outcomes]) -> pyarrow.Table:
    """A row of `columns_schema()` for each question."""
    rows = [_columns(*each) for each in _each(outcomes)]
    return pyarrow.Table.from_pylist(rows, schema=columns_schema())


def columns_schema() -> pyarrow.Schema:
    """The columns of a file of answers, and `error`."""
    return answer_schema().append(pyarrow.field("error", pyarrow.string()))


def _each(outcomes: Iterable[Outcomes]) -> Iterator[tuple[PictureItem, PictureQuestion, QuestionOutcome]]:
    for job, each in outcomes:
        for question, outcome in zip(job.questions, each, strict=True):
            yield job.item, question, outcome


def _failure(item: PictureItem, question: PictureQuestion, error: FlorenceError) -> str:
    return failure_line(item.picture, question.task.token, str(error), item.id)


def _columns(item: PictureItem, question: PictureQuestion, outcome: QuestionOutcome) -> dict[str, Any]:
    if not isinstance(outcome, FlorenceError):
        return to_columns(json.loads(answer_line(item, question, outcome)))
    task, text, region, adapter = question.key
    picture = item.picture.encode(errors="backslashreplace").decode()
    asked = {"id": item.id, "task": task, "text": text, "region": region, "adapter": adapter}
    return {"picture": picture, **asked, "error": str(outcome)}
