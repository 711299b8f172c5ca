"""The Python library on the small random checkpoint: the original's answers for every kind of input."""

from __future__ import annotations

import io
import threading
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from goldens import Goldens, sequence_of
from PIL import Image
from waiting import PATIENCE_S

from florence import Florence2, parse_answer
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.engine.observer import Observer
from florence.errors import (
    ImageError,
    OptionError,
    RequestError,
    SettingsError,
    TaskError,
)
from florence.types.options import GenerationParameters
from florence.types.results import Detections, Text
from florence.types.tasks import TASKS, Input, Kind, Task


def default_cases(goldens: Goldens) -> list[dict[str, Any]]:
    """The goldens' cases with three beams and the checkpoint's own settings, one for each task that
    has one."""
    return [
        case
        for case in goldens.values["generation"]
        if case["id"] in {f"A-beam3-{name}" for name in
                          ("caption", "od", "ocr_with_region", "region_proposal", "region_to_category",
                           "open_vocabulary_detection", "referring_expression_segmentation")}
    ]  # fmt: skip


def test_answers_are_the_originals_from_picture_to_json(library: Florence2, goldens: Goldens) -> None:
    """Ids, text and JSON equal the original's, with its default options."""
    cases = default_cases(goldens)
    assert len(cases) == 7
    for case in cases:
        token = case["tasks"][0]
        text = case["texts"][0].removeprefix(token) or None
        name = case["images"][0]
        # The goldens use the stored pixels, without EXIF rotation.
        answer = library.run(
            Image.open(goldens.path(name)),
            token,
            text,
            pictures="original",
            max_new_tokens=case["params"]["max_new_tokens"],
        )
        assert answer.token_ids == sequence_of(case, 0), case["id"]
        assert answer.raw_text == case["text"][0]
        assert answer.florence() == case["post_process_text"][0]
        assert answer.token_logprobs == pytest.approx(case["transition_scores"][0], abs=2e-3)
        assert answer.usage.picture_tokens == 577
        assert answer.usage.prompt_tokens == len(case["input_ids"][0])
        size = (answer.image_size.width, answer.image_size.height)
        parsed = parse_answer(token, answer.raw_text, image_size=size)
        assert parsed.florence() == answer.florence()


def test_all_fifteen_tasks_answer_by_token_and_by_name(library: Florence2, picture: Path) -> None:
    """Each task answers by token and by name alike."""
    for task in TASKS.values():
        text = task.example if task.input is not Input.NONE else None
        by_token = library.run(picture, task.token, text, max_new_tokens=8)
        by_name = library.run(picture, task.name, text, max_new_tokens=8)
        assert by_token.task == by_name.task == task.token
        assert by_token.token_ids == by_name.token_ids
        assert by_token.finish_reason == ("length" if len(by_token.token_ids) == 9 else "stop")


def test_a_checkpoint_can_be_loaded_with_tasks_of_its_own(goldens: Goldens, picture: Path) -> None:
    """A declared task answers by token, by name and as an object, with its kind's result, and `info` lists
    it.

    A task given as an object need not be declared.
    """
    scan = Task("<SCAN>", "scan", "Locate the objects with category name in the image.", Input.NONE,
                Kind.BOXES, "Boxes.", labelled=False)  # fmt: skip
    with Florence2.load(
        str(goldens.checkpoint), device="cpu", dtype="float32", threads=1, tasks=[scan]
    ) as model:
        answers = [model.run(picture, task, max_new_tokens=20) for task in ("<SCAN>", "scan", scan)]
        labelled = model.run(picture, "<OD>", max_new_tokens=20)
        said = model.run(picture, replace(scan, kind=Kind.TEXT, token="raw", name="raw"), max_new_tokens=20)
        assert model.info()["tasks"] == [*TASKS, "<SCAN>"]
        (analyzed,) = model.analyze(picture, [scan], max_new_tokens=20)
    for answer in [*answers, analyzed]:
        assert isinstance(answer, Answer)
        assert isinstance(answer.result, Detections)
        assert answer.task == "<SCAN>"
        assert answer.token_ids == labelled.token_ids == said.token_ids  # they have the same prompt
        assert {found.label for found in answer.result.detections} <= {""}
    assert (said.task, said.result.kind) == ("raw", "text")


def test_every_detection_has_a_score_between_0_and_1(library: Florence2, goldens: Goldens) -> None:
    """Every detection has a score between 0 and 1."""
    case = next(case for case in goldens.values["generation"] if case["id"] == "A-beam3-boxes-od")
    answer = library.run(
        Image.open(goldens.path(case["images"][0])),
        case["tasks"][0],
        max_new_tokens=case["params"]["max_new_tokens"],
    )
    assert isinstance(answer.result, Detections)
    assert answer.result.detections
    assert all(d.score is not None and 0 <= d.score <= 1 for d in answer.result.detections)


def test_bytes_paths_and_opened_pictures_are_turned_once(library: Florence2, goldens: Goldens) -> None:
    """Bytes, paths and opened pictures are rotated once, by their EXIF data."""
    path = goldens.path("a4_exif6_500x375.jpg")
    with Image.open(path) as picture:
        width, height = picture.size
        answers = [
            library.run(image, "<CAPTION>", max_new_tokens=2) for image in (path, path.read_bytes(), picture)
        ]
    sizes = [(answer.image_size.width, answer.image_size.height) for answer in answers]
    assert sizes == [(height, width)] * 3


def test_a_pil_picture_may_be_closed_once_it_is_submitted(library: Florence2, goldens: Goldens) -> None:
    """A PIL picture may be closed after `submit`."""
    with Image.open(goldens.path("a0_rgb_640x480.png")) as picture:
        future = library.submit(picture, "<CAPTION>", max_new_tokens=2)
    assert future.result(PATIENCE_S).image_size.width == 640


@pytest.mark.parametrize("change", ["paste", "close"])
@pytest.mark.parametrize("many", [False, True])
def test_a_pil_picture_may_be_changed_once_it_is_submitted(
    library: Florence2, goldens: Goldens, change: str, many: bool
) -> None:
    """A PIL picture may be changed after `submit` without changing the answer.

    This holds for RGB too, which needs no conversion. Readers are blocked until the change.
    """
    release = threading.Event()
    original = Image.open(goldens.path("a0_rgb_640x480.png"))
    expected = library.run(original, "<OD>", max_new_tokens=12)
    picture = original.copy()
    assert picture.mode == "RGB"

    def blocking() -> bytes:
        assert release.wait(PATIENCE_S)
        return b""

    held = [library.submit(blocking, "<CAPTION>") for _ in range(2)]
    if many:
        (future,) = library.submit_all(picture, ["<OD>"], max_new_tokens=12)
    else:
        future = library.submit(picture, "<OD>", max_new_tokens=12)
    if change == "close":
        picture.close()
    else:
        picture.paste("white", (0, 0, *picture.size))
    release.set()
    wait(held, PATIENCE_S)
    assert future.result(PATIENCE_S).token_ids == expected.token_ids


def test_a_damaged_pil_picture_fails_in_its_future(library: Florence2, goldens: Goldens) -> None:
    """A damaged PIL picture fails in its future."""
    data = goldens.path("a0_rgb_640x480.png").read_bytes()
    with Image.open(io.BytesIO(data[: len(data) // 2])) as picture:
        future = library.submit(picture, "<CAPTION>")
    with pytest.raises(ImageError):
        future.result(PATIENCE_S)


def test_a_region_is_the_same_as_pixels_and_as_locations(library: Florence2, picture: Path) -> None:
    """A region as `region`, as `text` and as `<loc_n>` text gives the same answer."""
    locations = "<loc_100><loc_200><loc_500><loc_750>"
    box = (64.0, 96.0, 320.0, 360.0)
    answers = [
        library.run(picture, "<REGION_TO_OCR>", region=box, max_new_tokens=8),
        library.run(picture, "<REGION_TO_OCR>", box, max_new_tokens=8),
        library.run(picture, "<REGION_TO_OCR>", locations, max_new_tokens=8),
    ]
    assert len({tuple(answer.token_ids) for answer in answers}) == 1


class CountingObserver(Observer):
    """An observer that counts pictures in the tower and encoded requests."""

    def __init__(self) -> None:
        self.pictures = self.requests = 0

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        self.requests += requests
        self.pictures += pictures


def test_many_tasks_on_one_picture_see_it_once_and_answer_as_one_by_one(
    goldens: Goldens, picture: Path
) -> None:
    """Many tasks on one picture read and encode it once; each has its outcome, equal to that of a single
    call."""
    observer, reads = CountingObserver(), []

    def read() -> bytes:
        reads.append(1)
        return picture.read_bytes()

    region = (10.0, 20.0, 300.0, 400.0)
    asks = ["<OD>", "caption", ("<OCR>", "no text here"), ("<REGION_TO_CATEGORY>", region), "nonsense"]
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
    with Florence2.load(str(goldens.checkpoint), observer=observer, **settings) as model:
        outcomes = model.analyze(read, asks, max_new_tokens=12)
        assert (len(reads), observer.pictures, observer.requests) == (1, 1, 3)
        assert [type(outcome) for outcome in outcomes] == [Answer, Answer, TaskError, Answer, TaskError]
        for ask, outcome in zip(asks, outcomes, strict=True):
            if isinstance(outcome, Answer):
                pair = (ask, None) if isinstance(ask, str) else ask
                assert outcome.token_ids == model.run(picture, *pair, max_new_tokens=12).token_ids
        assert observer.pictures == 1  # the single calls used the cached picture
        bad = model.analyze(b"no picture", ["<OD>", "<OCR>"])
        assert all(isinstance(outcome, ImageError) for outcome in bad)
        assert model.analyze(Image.open(picture), ["<OD>"], max_new_tokens=12)[0].token_ids == (
            outcomes[0].token_ids
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_beams": 9}, OptionError, "num_beams must be an integer from 1 to 8"),
        ({"beams": 1.0}, OptionError, "unknown option 'beams'"),
        ({"timeout_s": 0}, OptionError, "timeout_s must be"),
        ({"parameters": GenerationParameters(), "num_beams": 2}, OptionError, "leave out num_beams"),
        ({"region": (1, 2, 3, 4)}, TaskError, "takes no"),
        ({"text": "a", "region": (1, 2, 3, 4)}, TaskError, "both text and region"),
    ],
)
def test_wrong_options_say_what_to_change(
    library: Florence2, picture: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A wrong option is an error that says what to change."""
    with pytest.raises(error, match=message):
        library.run(picture, "<CAPTION>", **options)


def test_options_change_the_generation(library: Florence2, picture: Path) -> None:
    """Options change the length and the tokens of an answer."""
    few = library.run(picture, "<OD>", max_new_tokens=5)
    assert (len(few.token_ids), few.finish_reason) == (6, "length")
    many = library.run(picture, "<OD>", min_new_tokens=70, max_new_tokens=80)
    assert len(many.token_ids) > 70
    greedy = library.run(picture, "<CAPTION>", num_beams=1, max_new_tokens=20)
    wide = library.run(picture, "<CAPTION>", num_beams=5, max_new_tokens=20)
    assert greedy.token_ids != wide.token_ids


def test_options_may_come_as_one_validated_object(library: Florence2, picture: Path) -> None:
    """Options as one object give the same answer as single options; a stream uses one beam by default."""
    parameters = GenerationParameters(num_beams=2, max_new_tokens=6)
    single = library.run(picture, "<CAPTION>", num_beams=2, max_new_tokens=6)
    assert library.run(picture, "<CAPTION>", parameters=parameters).token_ids == single.token_ids
    with library.stream(picture, "<CAPTION>", parameters=GenerationParameters(max_new_tokens=6)) as stream:
        assert list(stream)
    with pytest.raises(OptionError, match="num_beams=1"):
        next(library.stream(picture, "<CAPTION>", parameters=parameters))


def test_info_says_what_runs(library: Florence2, goldens: Goldens) -> None:
    """`info` describes the loaded checkpoint, its device and its settings."""
    info = library.info()
    assert info["checkpoint"] == str(goldens.checkpoint)
    assert (info["device"], info["dtype"]) == ("cpu", "float32")
    assert info["picture_size"] == [768, 768]
    assert info["generation"]["num_beams"] == 3
    assert len(info["tasks"]) == 15
    assert library.run(Image.new("L", (9, 9)), "<CAPTION>", max_new_tokens=2).checkpoint == library.checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precisions_answer_too(goldens: Goldens, picture: Path, dtype: str) -> None:
    """Lower precisions have the same interface; their answers may differ."""
    with Florence2.load(str(goldens.checkpoint), device="cpu", dtype=dtype) as model:
        model.warm_up()
        buffer = io.BytesIO()
        Image.open(picture).save(buffer, "WEBP")
        answer = model.run(buffer.getvalue(), "<CAPTION>", max_new_tokens=8)
        assert isinstance(answer.result, Text)
        assert model.info()["dtype"] == dtype


def test_a_wrong_device_or_dtype_is_refused(goldens: Goldens) -> None:
    """An unknown device or dtype is refused."""
    with pytest.raises(SettingsError, match="dtype 'int4'"):
        Florence2.load(str(goldens.checkpoint), dtype="int4")
    with pytest.raises(SettingsError, match="device 'tpu'"):
        Florence2.load(str(goldens.checkpoint), device="tpu")


@pytest.mark.slow
def test_room_is_kept_for_so_many_tokens_as_are_asked_for(goldens: Goldens, picture: Path) -> None:
    """A longer answer is cut to the reserved room with the reason `length`.

    A longer minimum and a longer prompt are refused; a shorter answer is the same as with room for all
    positions.
    """
    load = partial(Florence2.load, str(goldens.checkpoint), device="cpu", dtype="float32", threads=1)
    few = EngineConfig(max_new_tokens=12, max_prompt_tokens=24)
    many = EngineConfig(max_new_tokens=10**5, max_prompt_tokens=10**5)
    with load(config=few) as narrow, load(config=many) as wide:
        assert narrow.info()["limits"]["max_new_tokens"] == 12
        assert wide.info()["limits"]["max_new_tokens"] == 4096  # the number of positions of the checkpoint
        cut = narrow.run(picture, "<CAPTION>", max_new_tokens=40, min_new_tokens=12)
        assert (cut.finish_reason, len(cut.token_ids)) == ("length", 13)  # including the start token
        with pytest.raises(OptionError, match=r"min_new_tokens must be at most 12, .* got 13"):
            narrow.run(picture, "<CAPTION>", max_new_tokens=40, min_new_tokens=13)
        short = [model.run(picture, "<OD>", max_new_tokens=12) for model in (narrow, wide)]
        assert short[0].token_ids == short[1].token_ids
        text = "word " * 30
        with pytest.raises(RequestError, match="at most 24 fit"):
            narrow.run(picture, "<CAPTION_TO_PHRASE_GROUNDING>", text)
        assert wide.run(picture, "<CAPTION_TO_PHRASE_GROUNDING>", text, max_new_tokens=4)
