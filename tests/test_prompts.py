"""Custom prompts, declared tasks and sampling in the Python library, on the small random checkpoint."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from goldens import Goldens

from florence import Florence2, parse_answer
from florence.errors import OptionError, SettingsError, TaskError
from florence.runtime.own_tasks import own_tasks
from florence.types.declared import TASKS_FILE, DeclaredTask
from florence.types.results import Tags
from florence.types.tasks import TASKS, Kind, prompt_task

ROWS = [
    {"token": "<LIST>", "name": "list_all", "prompt": "What does the image describe?", "kind": "tags"},
    {"token": "<FIND>", "name": "find", "prompt": "Locate {input} in the image.", "input": "text"}
    | {"kind": "boxes", "no_repeat_ngram_size": None},
]


@pytest.fixture(scope="module")
def folder(goldens: Goldens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with a file of declared tasks."""
    folder = tmp_path_factory.mktemp("fine_tune")
    for file in goldens.checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / TASKS_FILE).write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())  # as Windows may save it
    return folder


@pytest.fixture(scope="module")
def fine_tune(folder: Path) -> Any:
    """The library with that checkpoint."""
    with Florence2.load(str(folder), device="cpu", dtype="float32", threads=1) as model:
        yield model


@pytest.mark.parametrize("kind", Kind)
def test_a_prompt_is_read_word_for_word(library: Florence2, picture: Path, kind: Kind) -> None:
    """A prompt gets the tokens of a task with the same sentence, its answer is read as requested, and
    n-grams may repeat."""
    caption = TASKS.resolve("<CAPTION>")
    options: Any = {"max_new_tokens": 12}
    answer = library.run(picture, prompt=caption.prompt, answer_as=kind, **options)
    repeating = library.run(picture, "<CAPTION>", no_repeat_ngram_size=0, **options)
    assert answer.token_ids == repeating.token_ids
    assert (answer.task, answer.seed) == (caption.prompt, None)
    wanted = {"boxes", "polygons"} if kind is Kind.BOXES_OR_POLYGONS else {kind.value}
    assert answer.result.kind in wanted
    unrepeated = library.run(picture, prompt=caption.prompt, no_repeat_ngram_size=3, **options)
    assert unrepeated.token_ids == library.run(picture, "<CAPTION>", **options).token_ids


def test_a_prompt_stands_in_a_tasks_place_everywhere(library: Florence2, picture: Path) -> None:
    """A prompt may replace a task in a stream, among many tasks, and in the original's format, where it is
    the key and its answer is text."""
    prompt = "What does the image describe?"
    options: Any = {"max_new_tokens": 8}
    with library.stream(picture, prompt=prompt, answer_as="tags", **options) as stream:
        pieces = "".join(stream)
        assert stream.answer.result.text == pieces.strip()
    (one,) = library.analyze(picture, [prompt_task(prompt)], **options)
    assert one.token_ids == library.run(picture, prompt=prompt, **options).token_ids  # type: ignore[union-attr]
    original = library.submit_original(picture, prompt=prompt, **options).result()
    assert list(json.loads(original.text)) == [prompt] == [original.task]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "neither a task nor a prompt is given"),
        ({"task": "<OD>", "prompt": "x"}, "replace a task, but '<OD>' is given"),
        ({"task": "<OD>", "answer_as": "text"}, "replace a task"),
        ({"prompt": " "}, "a prompt is a text that is not blank, got ' '"),
        ({"prompt": "x", "answer_as": "xml"}, "answer_as must be one of text, tags, json"),
        ({"prompt": "x", "text": "y"}, "x takes no text, got 'y'"),
    ],
)
def test_what_is_no_question_is_refused(
    library: Florence2, picture: Path, asked: dict[str, Any], message: str
) -> None:
    """A call with no task or prompt, with both, or with a wrong prompt is refused."""
    with pytest.raises(TaskError, match=message):
        library.run(picture, **asked)


def test_tasks_beside_the_checkpoint_are_known(fine_tune: Florence2, picture: Path) -> None:
    """A declared task is known by token and name, with its kind; its settings may be the checkpoint's."""
    options: Any = {"max_new_tokens": 10}
    assert [DeclaredTask(**row) for row in fine_tune.info()["declared_tasks"]] == [
        DeclaredTask.of(DeclaredTask(**row).task())  # type: ignore[arg-type]
        for row in ROWS
    ]
    listed = fine_tune.run(picture, "list_all", **options)
    assert isinstance(listed.result, Tags)
    assert (
        listed.token_ids == fine_tune.run(picture, "<CAPTION>", no_repeat_ngram_size=0, **options).token_ids
    )
    found = fine_tune.run(picture, "<FIND>", "a car", **options)
    same = fine_tune.run(picture, "<OPEN_VOCABULARY_DETECTION>", "a car", **options)
    assert (found.task, found.token_ids) == ("<FIND>", same.token_ids)
    with pytest.raises(TaskError, match="did you mean <LIST> or list_all"):
        fine_tune.run(picture, "list_al")


def test_a_declared_tasks_original_json_is_that_of_its_kind(fine_tune: Florence2, picture: Path) -> None:
    """A declared task's original JSON stands under its token, the same over v2 and from the typed answer."""
    options: Any = {"max_new_tokens": 30, "min_new_tokens": 29}
    answer = fine_tune.run(picture, "find", "a car", **options)
    original = json.loads(fine_tune.submit_original(picture, "find", "a car", **options).result().text)
    parsed = parse_answer(fine_tune.tasks.resolve("find"), answer.raw_text, image_size=(640, 480))
    assert answer.florence() == original == parsed.florence()
    assert original["<FIND>"].keys() == {"bboxes", "labels"}
    listed = fine_tune.run(picture, "list_all", **options)
    assert isinstance(listed.florence()["<LIST>"], str)


def test_named_tasks_stand_in_place_of_the_file(folder: Path, tmp_path: Path) -> None:
    """Presets and files given by name replace the checkpoint's file; an unknown name is refused with a
    hint."""
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps([{"token": "<MINE>", "name": "mine"}]))
    assert [task.name for task in own_tasks(None, folder)] == ["list_all", "find"]
    assert own_tasks(None, tmp_path) == []
    assert [task.name for task in own_tasks(f"vqa, {mine}", folder)] == ["vqa", "mine"]
    with pytest.raises(
        SettingsError, match=r"'promptgn' is neither a file nor a preset; did you mean promptgen"
    ):
        own_tasks("promptgn", folder)
    with pytest.raises(SettingsError, match=r"preset docvqa: two tasks are called '<DocVQA>'"):
        own_tasks("docvqa,docvqa", folder)
    mine.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"mine.json can't be read"):
        own_tasks(str(mine), folder)


def test_a_wrong_row_ends_the_start_before_weights_are_read(goldens: Goldens, tmp_path: Path) -> None:
    """The error names file, row and token, before weights are read."""
    (tmp_path / TASKS_FILE).write_text(json.dumps([*ROWS, {"token": "<OD>", "name": "mine"}]))
    for file in goldens.checkpoint.glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(SettingsError, match=r"florence_tasks.json, row 3: two tasks are called '<OD>'"):
        Florence2.load(str(tmp_path), device="cpu")


@pytest.mark.slow
def test_a_seed_decides_what_is_drawn(library: Florence2, picture: Path) -> None:
    """An answer reports its random seed, which gives the same answer again, beside any other requests."""
    options: Any = {
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 0,
    }
    drawn = [library.run(picture, "<CAPTION>", **options) for _ in range(3)]
    assert len({tuple(answer.token_ids) for answer in drawn}) == 3
    crowd: list[Future[Any]] = []
    for answer in drawn:
        crowd.append(library.submit(picture, "<CAPTION>", **options, seed=answer.seed))
        crowd.append(library.submit(picture, "<OD>", max_new_tokens=12))
        crowd.append(library.submit(picture, "<OCR>", **options))
    for answer, again in zip(drawn, crowd[::3], strict=True):
        assert again.result().token_ids == answer.token_ids
        assert again.result().token_logprobs == pytest.approx(answer.token_logprobs, abs=1e-4)
        assert json.loads(answer.model_dump_json())["seed"] == answer.seed
    original = library.submit_original(picture, "<CAPTION>", **options).result()
    assert original.seed is not None
    with library.stream(picture, "<CAPTION>", **options, seed=drawn[0].seed) as stream:
        assert "".join(stream)
        assert stream.answer.token_ids == drawn[0].token_ids


def test_a_penalty_works_with_beams(library: Florence2, picture: Path) -> None:
    """A high penalty leaves no token twice; one below 1 repeats tokens."""
    options: Any = {"max_new_tokens": 12, "min_new_tokens": 12, "num_beams": 3, "no_repeat_ngram_size": 0}
    for penalty, repeats in ((100.0, False), (0.01, True)):
        ids = library.run(picture, "<CAPTION>", **options, repetition_penalty=penalty).token_ids[2:-1]
        assert (len(set(ids)) < len(ids)) is repeats


def test_sampling_with_beams_is_refused(library: Florence2, picture: Path) -> None:
    """Sampling with several beams is refused."""
    with pytest.raises(OptionError, match="do_sample draws one answer and needs num_beams=1, got 3"):
        library.run(picture, "<CAPTION>", do_sample=True, num_beams=3)
