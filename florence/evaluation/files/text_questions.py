"""Questions with answers in words, from the files of VQA and DocVQA, and from the user's JSON lines.

VQA has two files, questions and annotations; DocVQA has one with both. Knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from florence.errors import RequestError, quote
from florence.evaluation.files.examples import Example, Truth
from florence.evaluation.files.json_file import read_json, read_json_lines


class VqaQuestion(BaseModel):
    """A question of VQA."""

    question_id: int | str
    image_id: int | str
    question: str = Field(min_length=1)
    image: str | None = None


class VqaQuestions(BaseModel):
    """VQA's file of questions. `data_subtype`: part of the pictures' names, as in
    COCO_val2014_000000000042.jpg."""

    questions: list[VqaQuestion] = Field(min_length=1)
    data_subtype: str | None = None


class VqaAnswer(BaseModel):
    """What one person answered."""

    answer: str


class VqaAnnotation(BaseModel):
    """What people answered to a question."""

    question_id: int | str
    answers: list[VqaAnswer] = Field(min_length=1)


class VqaAnnotations(BaseModel):
    """VQA's file of answers."""

    annotations: list[VqaAnnotation]


class DocumentQuestion(BaseModel):
    """A question of DocVQA with the right answers. `image`: the picture's file."""

    question: str = Field(min_length=1)
    image: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1)


class DocumentQuestions(BaseModel):
    """DocVQA's file."""

    data: list[DocumentQuestion] = Field(min_length=1)


class PromptRow(BaseModel):
    """One of the user's JSON lines. `text`: the input of the prompt or task besides the picture. `answer`:
    the right text or JSON value."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(min_length=1)
    answer: Any
    text: str | None = None


def vqa_questions(questions: Path, annotations: Path, images: Path) -> Iterator[Example]:
    """The questions in VQA's two files. Raises `RequestError` where they don't match."""
    asked, answered = read_json(questions, VqaQuestions), read_json(annotations, VqaAnnotations)
    answers = {each.question_id: [one.answer for one in each.answers] for each in answered.annotations}
    for number, one in enumerate(asked.questions):
        if one.question_id not in answers:
            raise RequestError(
                f"{annotations}: annotations: there is no answer to question {quote(one.question_id)}, "
                f"questions[{number}] of {questions}"
            )
        name = one.image or _coco_name(questions, number, one, asked.data_subtype)
        yield Example(name, images / name, Truth(texts=tuple(answers[one.question_id])), one.question)


def _coco_name(questions: Path, number: int, one: VqaQuestion, subtype: str | None) -> str:
    if subtype is None or not isinstance(one.image_id, int):
        raise RequestError(
            f"{questions}: questions[{number}].image is missing; it is needed if data_subtype does "
            "not give the names of pictures"
        )
    return f"COCO_{subtype}_{one.image_id:012d}.jpg"


def document_questions(file: Path, images: Path) -> Iterator[Example]:
    """The questions in DocVQA's file."""
    for one in read_json(file, DocumentQuestions).data:
        yield Example(one.image, images / one.image, Truth(texts=tuple(one.answers)), one.question)


def prompt_rows(file: Path, images: Path, *, in_words: bool) -> Iterator[Example]:
    """The questions in a file of JSON lines with picture, answer and, if needed, text. `in_words`: whether
    each answer must be a text."""
    for number, row in enumerate(read_json_lines(file, PromptRow), start=1):
        if in_words and not isinstance(row.answer, str):
            raise RequestError(
                f"{file}: answer {number} is not text but {quote(row.answer)}; --answer-as json compares "
                "values"
            )
        text = row.answer if isinstance(row.answer, str) else json.dumps(row.answer, ensure_ascii=False)
        yield Example(row.picture, images / row.picture, Truth(texts=(text,), value=row.answer), row.text)
