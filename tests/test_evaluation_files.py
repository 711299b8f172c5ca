"""Truth files: the questions that each subject makes of them, and the errors for wrong files."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT

from florence.errors import FlorenceError, RequestError, TaskError
from florence.evaluation.files.examples import Example, same_words
from florence.evaluation.names import SUMMARIES
from florence.evaluation.subjects import SUBJECTS, Files
from florence.types.tasks import TASKS, Kind, prompt_task

SQUARE = [10, 10, 50, 10, 50, 50, 10, 50]
COCO: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 100, "height": 80, "neg_category_ids": [3]},
        {"id": 2, "file_name": "b.png", "caption": "A dog beside a dog"},
        {"id": 3, "file_name": "empty.png"},
    ],
    "annotations": [
        {
            "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "segmentation": [SQUARE], "iscrowd": 0,
            "caption": "one dog", "phrase": "the dog", "text": "EXIT",
        },
        {
            "image_id": 1, "category_id": 2, "bbox": [60, 0, 41, 40], "segmentation": [SQUARE],
            "caption": "a dog", "phrase": "a cat", "text": "7",
        },
        {
            "image_id": 2, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": [SQUARE],
            "caption": "two dogs", "phrase": "a dog", "region": [0, 0, 9, 9],
        },
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "cow"}],
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the pictures of the truth file."""
    for name in ("a.png", "b.png", "empty.png", "COCO_val2014_000000000042.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def written(folder: Path, content: Any, name: str = "truth.json") -> Path:
    """Write a file with this content."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(
    subject: str, images: Path, content: Any = COCO, task: str | None = None, **more: Any
) -> list[Example]:
    """The examples that a subject reads."""
    asked = SUBJECTS[subject]
    files = Files(images, coco=written(images, content), **more)
    return asked.read(files, TASKS.resolve(task or asked.task or ""))


def shown(examples: list[Example]) -> list[tuple[str, str | None, list[str]]]:
    """The picture, the text and the true labels of each question."""
    return [(one.picture, one.text, [thing.label for thing in one.truth.things]) for one in examples]


def test_what_is_asked_of_a_coco_file(images: Path) -> None:
    """Each subject makes its questions, texts and truth from a COCO file."""
    assert [(one.picture, one.truth.texts) for one in read("captions", images)] == [
        ("a.png", ("one dog", "a dog")),
        ("b.png", ("two dogs",)),
    ]
    assert shown(read("detection", images)) == [
        ("a.png", None, ["dog", "cat"]),
        ("b.png", None, ["dog"]),
        ("empty.png", None, []),  # every box there is wrong
    ]
    assert shown(read("detection", images, task="region_proposal"))[0] == ("a.png", None, ["", ""])
    assert shown(read("dense-captions", images))[0] == ("a.png", None, ["the dog", "a cat"])
    assert shown(read("grounding", images)) == [
        ("a.png", "the dog, a cat", ["the dog", "a cat"]),
        ("b.png", "A dog beside a dog", ["a dog"]),
    ]
    assert shown(read("referring", images))[1] == ("a.png", "a cat", ["a cat"])
    assert [one.text for one in read("segmentation", images)] == [
        "10, 10, 50, 50", "60, 0, 100, 40", "0, 0, 9, 9",
    ]  # fmt: skip
    (read_there,) = read("ocr", images)
    assert (read_there.truth.texts, [thing.label for thing in read_there.truth.things]) == (
        ("EXIT 7",),
        ["EXIT", "7"],
    )
    assert read("detection", images)[0].truth.things[1].box == (60, 0, 101, 40)
    assert (read("detection", images)[0].size, read("detection", images)[1].size) == ((100, 80), None)


def test_open_vocabulary_asks_for_the_classes_that_are_known(images: Path) -> None:
    """Open vocabulary asks for the classes in the picture and those that LVIS's field says are absent, or for
    all classes."""
    known = [
        ("a.png", "dog", ["dog"]),
        ("a.png", "cat", ["cat"]),
        ("a.png", "cow", []),
        ("b.png", "dog", ["dog"]),
    ]
    assert shown(read("open-vocabulary", images)) == known
    assert len(read("open-vocabulary", images, all_classes=True)) == 9


def test_questions_of_vqa_and_docvqa(images: Path) -> None:
    """VQA names its pictures by number in two files; DocVQA has one file."""
    questions = {
        "data_subtype": "val2014",
        "questions": [{"question_id": 5, "image_id": 42, "question": "Who?"}],
    }
    annotations = {"annotations": [{"question_id": 5, "answers": [{"answer": "me"}, {"answer": "you"}]}]}
    task = prompt_task("{input}")
    files = Files(
        images, questions=written(images, questions, "q"), annotations=written(images, annotations, "a")
    )
    (one,) = SUBJECTS["vqa"].read(files, task)
    assert (one.picture, one.text, one.truth.texts) == (
        "COCO_val2014_000000000042.jpg",
        "Who?",
        ("me", "you"),
    )
    document = {"data": [{"question": "What?", "image": "a.png", "answers": ["it"], "docId": 3}]}
    (one,) = SUBJECTS["vqa"].read(Files(images, questions=written(images, document, "d")), task)
    assert (one.picture, one.text, one.truth.texts) == ("a.png", "What?", ("it",))


def test_rows_of_a_callers_own_file(images: Path) -> None:
    """A row has an answer as text or JSON and optionally a text, and blank lines are ignored."""
    first = '{"picture": "a.png", "answer": {"n": 1}, "text": "How many?"}'
    second = '{"picture": "b.png", "answer": "no"}'
    rows = f"{first}\n\n{second}\n"
    files = Files(images, rows=written(images, rows))
    one, two = SUBJECTS["prompts"].read(files, prompt_task("p", Kind.JSON))
    assert (one.text, one.truth.value, two.text, two.truth.value) == ("How many?", {"n": 1}, None, "no")
    with pytest.raises(RequestError, match=r"answer 1 is not text but .*--answer-as json"):
        SUBJECTS["prompts"].read(files, prompt_task("p"))


def _at(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets or deletes the field at this path."""

    def damage(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        if to is ...:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_at("images", to=...), "truth.json: images is missing"),
        (_at("images", to=[]), "truth.json: images: list should have at least 1 item"),
        (_at("images", 1, "file_name", to=3), "images[1].file_name: input should be a valid string, got 3"),
        (_at("images", 1, "id", to=None), "images[1].id: an id is a whole number or a text, got None"),
        (_at("images", 1, "id", to=1), "images: the id 1 stands there 2 times"),
        (_at("categories", 2, "id", to=1), "categories: the id 1 stands there 2 times"),
        (_at("annotations", 2, "bbox", to=[1, 2, 3]), "annotations[2].bbox[3] is missing"),
        (_at("annotations", 2, "bbox", 2, to=-1), "annotations[2].bbox[2]: input should be greater than"),
        (_at("annotations", 2, "bbox", 0, to="x"), "annotations[2].bbox[0]: input should be a valid number"),
        (_at("annotations", 2, "bbox", 0, to=float("nan")), "bbox[0]: input should be a finite number"),
        (_at("annotations", 2, "bbox", to=None), "annotations[2].bbox: is needed here, and missing"),
        (_at("annotations", 2, "image_id", to=9), "annotations[2].image_id: no picture has the id 9"),
        (_at("annotations", 2, "category_id", to=9), "annotations[2].category_id: no category has the id 9"),
        (_at("annotations", 2, "category_id", to=...), "annotations[2].category_id: is needed here"),
        (_at("annotations", 1, "segmentation", to=[[1, 2]]), "annotations[1].segmentation: must be polygons"),
        (_at("annotations", 1, "segmentation", to={"counts": [1]}), "annotations[1].segmentation: must be"),
        (_at("annotations", 1, "iscrowd", to=2), "annotations[1].iscrowd: input should be less than"),
        (_at("images", 0, "file_name", to="c.png"), "1 of 3 pictures are not in"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_its_field(damage: Callable[[Any], None], said: str, images: Path) -> None:
    """A wrong file is one error with the file, the field and its value."""
    content = copy.deepcopy(COCO)
    damage(content)
    with pytest.raises(RequestError, match=re.escape(said)):
        read("detection", images, content)


@pytest.mark.parametrize(
    ("subject", "field"),
    [
        ("captions", "caption"), ("dense-captions", "phrase"), ("grounding", "phrase"),
        ("referring", "phrase"), ("referring", "segmentation"), ("segmentation", "segmentation"),
    ],
)  # fmt: skip
def test_a_field_that_a_subject_needs_is_named(subject: str, field: str, images: Path) -> None:
    """A needed field that is missing or blank is named."""
    for value in (..., " ") if field != "segmentation" else (..., []):
        content = copy.deepcopy(COCO)
        _at("annotations", 1, field, to=value)(content)
        with pytest.raises(RequestError, match=rf"annotations\[1\].{field}: is needed here"):
            read(subject, images, content)


def test_missing_and_wrong_files_are_errors(images: Path, tmp_path: Path) -> None:
    """Files that are not JSON, missing, not given, or without questions, and a task with other answers, are
    errors."""
    for content, said in (("[1", "this is not JSON"), ("[1]", "input should be a valid dictionary")):
        with pytest.raises(RequestError, match=said):
            read("detection", images, content)
    caption = TASKS.resolve("caption")
    for files, said in (
        (Files(images), "this needs --coco"),
        (Files(images, coco=images / "none.json"), "none.json can't be read: No such file"),
        (Files(images / "none", coco=written(images, COCO)), "there is no directory .* for --images"),
        (Files(images, coco=written(images, {**COCO, "annotations": []})), "has nothing to ask about"),
    ):
        with pytest.raises(RequestError, match=said):
            SUBJECTS["captions"].read(files, caption)
    with pytest.raises(TaskError, match="<CAPTION> answers with text; this subject measures boxes"):
        SUBJECTS["detection"].measure_for(caption)
    with pytest.raises(RequestError, match="is empty"):
        SUBJECTS["prompts"].read(Files(images, rows=written(images, "\n")), caption)


class Opened:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["refs(unc).p", "refs.json"])
def test_a_pickle_is_refused_unopened(name: str, images: Path, tmp_path: Path) -> None:
    """A pickle is refused by its name or its first byte without being opened."""
    trace, path = tmp_path / "opened", images / name
    path.write_bytes(pickle.dumps([Opened(trace)]))
    with pytest.raises(RequestError, match=r"is a pickle.*was not opened.*evaluate\.md"):
        SUBJECTS["referring"].read(Files(images, coco=path), TASKS.resolve("open_vocabulary_detection"))
    assert not trace.exists()


def test_the_documented_program_converts_refcoco(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented program converts RefCOCO's files, with one annotation for each sentence of the split."""
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [
            {"id": 7, "image_id": 1, "bbox": [10, 10, 40, 40], "segmentation": [SQUARE], "category_id": 1}
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }  # fmt: skip
    refs = [
        {"ann_id": 7, "split": "val", "sentences": [{"sent": "left dog"}, {"sent": "the dog"}]},
        {"ann_id": 7, "split": "testA", "sentences": [{"sent": "dog"}]},
    ]
    written(images, instances, "instances.json")
    (images / "refs(unc).p").write_bytes(pickle.dumps(refs))
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(import json, pickle\n.*?)```", page, re.DOTALL)
    monkeypatch.chdir(images)
    exec(compile(program, "evaluate.md", "exec"), {})
    task = TASKS.resolve("referring_expression_segmentation")
    examples = SUBJECTS["referring"].read(Files(images, coco=images / "refcoco_val.json"), task)
    assert [one.text for one in examples] == ["left dog", "the dog"]


def test_labels_are_compared_by_their_words() -> None:
    """Labels are compared without case, extra white space, articles and final full stops."""
    assert same_words("A  Green\nCar.") == same_words("the green car") == "green car"
    assert same_words("an") == "an"
    assert same_words("theatre") == "theatre"


def test_subjects_are_those_of_the_help() -> None:
    """The help's subjects are those that exist, and each one's task can be measured."""
    assert list(SUMMARIES) == list(SUBJECTS)
    for name, subject in SUBJECTS.items():
        if subject.task is not None:
            assert subject.measure_for(TASKS.resolve(subject.task)), name


def test_errors_are_the_packages(images: Path) -> None:
    """Any file content is refused with one of the package's errors."""
    for content in ("\ufeff{}", "{}", "null", '{"images": 3}', "[" * 100_000, "NaN"):
        with pytest.raises(FlorenceError):
            read("detection", images, content)
