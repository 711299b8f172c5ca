"""Reading answers: lines of `florence bulk`, and the JSON of any answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_model import RESULT

import florence
from florence.answers import PictureAnswer
from florence.answers.files import read_each
from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_line
from florence.bulk.question import PictureQuestion
from florence.errors import RequestError
from florence.export.coco import Categories, coco_dataset
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detections, Text
from florence.types.tasks import TASKS

PICTURES = ("a.png", "in/ü.jpg", "\udcff.png")  # the last name is not UTF-8


def answer_of(task: str, result: Any) -> TaskAnswer[Any]:
    """An answer with this task and result."""
    return TaskAnswer[Any](
        task=task,
        result=result,
        image_size=ImageSize(width=640, height=480),
        finish_reason="stop",
        usage=Usage(picture_tokens=1, prompt_tokens=2, generated_tokens=3),
        timings=Timings(queue_s=0, encode_s=0, decode_s=0, total_s=0),
        checkpoint="fake",
    )


def every_line() -> list[tuple[str, str, Any]]:
    """(line, picture, result) of every task about every picture, as `bulk` writes them."""
    lines = []
    for item in (PictureItem(picture, "") for picture in PICTURES):
        for task in TASKS.values():
            result = RESULT[task.kind]
            written = answer_line(item, PictureQuestion(task, "a car"), answer_of(task.token, result))
            lines.append((written, item.picture, result))
    return lines


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with all these lines."""
    path = tmp_path / "results.jsonl"
    path.write_text("".join(line for line, _, _ in every_line()), encoding="utf-8")
    return path


def test_lines_come_back_as_they_were_written(file: Path) -> None:
    """Each line is read with its picture, its question and its typed result, and the answers can be
    exported."""
    answers = list(florence.read_answers(str(file)))
    for answer, (_, picture, result) in zip(answers, every_line(), strict=True):
        assert isinstance(answer, TaskAnswer)
        assert answer.result == result
        assert (answer.picture, answer.given_text, answer.given_region) == (picture, "a car", None)
    made = coco_dataset(((each.picture, each) for each in answers), categories=Categories.of(answers))
    assert len(made["images"]) == len(answers)
    assert {each["name"] for each in made["categories"]} == {"fake", "object", "text"}


@pytest.mark.parametrize("result", RESULT.values(), ids=[str(kind) for kind in RESULT])
def test_json_of_any_answer_gives_its_typed_result(result: Any) -> None:
    """The JSON of an answer gives its typed result by the result's kind, for any task name."""
    answer = TaskAnswer.model_validate_json(answer_of("<MY_TASK>", result).model_dump_json())
    assert type(answer.result) is type(result)
    assert answer.result == result
    assert TaskAnswer.model_validate_json(answer.model_dump_json()) == answer
    assert answer.annotations() == result.annotations()


def test_an_unknown_kind_is_told() -> None:
    """An unknown kind of result is an error that names it and a known kind."""
    body = json.loads(answer_of("<OD>", Text(text="a")).model_dump_json())
    body["result"]["kind"] = "sounds"
    with pytest.raises(ValueError, match=r"'sounds'.*'boxes'"):
        TaskAnswer.model_validate_json(json.dumps(body))


def test_a_line_that_is_cut_off_is_left_out(file: Path) -> None:
    """A last line that was cut off at any byte is left out, and a complete last line without a newline is
    read. The file stays unchanged."""
    whole = every_line()[0][0].encode()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole + whole[:cut])
        assert len(list(florence.read_answers(file))) == 1
        assert file.read_bytes() == whole + whole[:cut]
    file.write_bytes(whole + whole[:-1])
    assert len(list(florence.read_answers(file))) == 2
    file.write_bytes(b"")
    assert list(florence.read_answers(file)) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no JSON\n", "line 2 of .*results.jsonl is not an answer of `florence bulk`: "),
        (b"no JSON", "line 2"),
        (b"\n", "line 2"),
        (b"[]\n", "line 2"),
        (b"\xff\n", "line 2"),
        (b'{"picture": "a", "result": {"kind": "text"}}', "line 2"),
        (b'{"picture": \n', "line 2"),
        (b"[" * 100_000 + b"\n", "line 2"),
        (every_line()[0][0].replace('"kind":"text"', '"kind":"odd"').encode(), "line 2.*result: .*'odd'"),
    ],
)
def test_a_line_that_is_not_an_answer_is_named(file: Path, line: bytes, reason: str) -> None:
    """A line that is not an answer is an error with its number; the lines before it are read, and `read_each`
    also reads those after it."""
    first, second = (line.encode() for line, _, _ in every_line()[:2])
    file.write_bytes(first + line)
    answers = florence.read_answers(file)
    assert next(answers).picture == "a.png"
    with pytest.raises(RequestError, match=reason):
        next(answers)
    file.write_bytes(first + line.rstrip(b"\n") + b"\n" + second)
    kinds = [type(each) for each in read_each(file)]
    assert kinds == [PictureAnswer, RequestError, PictureAnswer]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A missing file is a FileNotFoundError that names it."""
    with pytest.raises(FileNotFoundError, match="absent"):
        next(florence.read_answers(tmp_path / "absent.jsonl"))


def test_reading_needs_nothing_of_the_models(file: Path) -> None:
    """A program that only reads answers imports neither torch, numpy, Pillow, BentoML nor httpx."""
    program = (
        "import sys, florence; answers = list(florence.read_answers(sys.argv[1])); print(len(answers)); "
        "print({'torch', 'numpy', 'PIL', 'bentoml', 'httpx'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == [str(len(every_line())), "set()"]


def test_a_kind_can_be_demanded() -> None:
    """`TaskAnswer[Detections]` accepts only boxes."""
    text = answer_of("<CAPTION>", Text(text="a")).model_dump_json()
    with pytest.raises(ValueError, match="boxes"):
        TaskAnswer[Detections].model_validate_json(text)
