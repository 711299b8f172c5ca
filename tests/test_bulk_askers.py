"""Calls to a service or a model for a picture: how many, with which arguments, and with which outcomes."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bulk_runs import answer
from pdfs import pdf
from pictures import drawn, saved
from PIL import Image

from florence.bulk.askers import ModelAsker, ServiceAsker
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.errors import EngineError, FlorenceError, ImageError, ImageTooLarge
from florence.images.limits import DEFAULT_LIMITS
from florence.types.analysis import TaskFailure
from florence.types.tasks import TASKS, prompt_task

CAPTION, BOXES, OCR = (PictureQuestion(TASKS[token]) for token in ("<CAPTION>", "<OD>", "<OCR>"))
REGION = PictureQuestion(TASKS["<REGION_TO_OCR>"], region="1,2,3,4")
GREEDY = PictureQuestion(TASKS["<DETAILED_CAPTION>"], options={"num_beams": 1})


class FakeClient:
    """A client that records its calls and fails the task <OCR>."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: FlorenceError | None = None

    def run(self, picture: Any, task: Any, text: Any = None, *, region: Any = None, **options: Any) -> Any:
        """Record a call with one task and answer it."""
        self.calls.append((picture, task.token, text, region, options))
        if self.error:
            raise self.error
        return answer(task)

    def analyze(self, picture: Any, specs: Any, **options: Any) -> list[Any]:
        """Record a call with several tasks and answer it, with a failure for <OCR>."""
        self.calls.append((picture, specs, options))
        if self.error:
            raise self.error
        tasks = [spec[0] if isinstance(spec, tuple) else spec for spec in specs]
        return [
            TaskFailure(task=task.token, error="no text", status=400)
            if task.token == "<OCR>"
            else answer(task)
            for task in tasks
        ]


@pytest.fixture
def client() -> FakeClient:
    """A client that records its calls."""
    return FakeClient()


@pytest.fixture
def asker(client: FakeClient) -> ServiceAsker:
    """An asker that calls `client`."""
    return ServiceAsker(lambda ask: ask(client))  # type: ignore[arg-type]


@pytest.fixture
def item(tmp_path: Path) -> PictureItem:
    """A picture file."""
    (tmp_path / "a.png").write_bytes(saved(drawn(48, 32)))
    return PictureItem("a.png", str(tmp_path / "a.png"))


def test_the_questions_of_a_picture_are_one_call(
    client: FakeClient, asker: ServiceAsker, item: PictureItem
) -> None:
    """All questions about a picture are one call; a task that fails does not fail the others."""
    first, second, third, fourth = asker(item, [CAPTION, OCR, REGION, BOXES])
    ((picture, specs, options),) = client.calls
    assert (picture, options) == (item.read(), {})
    assert specs == [CAPTION.task, OCR.task, (REGION.task, "1,2,3,4"), BOXES.task]
    assert str(second) == "no text"
    assert [each.task for each in (first, third, fourth)] == ["<CAPTION>", "<REGION_TO_OCR>", "<OD>"]  # type: ignore[union-attr]


def test_other_options_and_prompts_are_calls_of_their_own(
    client: FakeClient, asker: ServiceAsker, item: PictureItem
) -> None:
    """Questions with other options, and prompts, are separate calls; outcomes keep the order of the
    questions."""
    prompt = PictureQuestion(prompt_task("What is it?"))
    asked = [CAPTION, GREEDY, prompt, BOXES]
    assert [each.task for each in asker(item, asked)] == [each.task.token for each in asked]  # type: ignore[union-attr]
    assert [call[1:] for call in client.calls] == [
        ([CAPTION.task, BOXES.task], {}),
        ("<DETAILED_CAPTION>", None, None, {"num_beams": 1}),
        ("What is it?", None, None, {}),
    ]


def test_an_error_fails_the_questions_of_its_call(
    client: FakeClient, asker: ServiceAsker, item: PictureItem
) -> None:
    """An error of a call fails each of its questions, and so does a picture that can't be read."""
    client.error = EngineError("broken")
    assert asker(item, [CAPTION, BOXES, GREEDY]) == [client.error] * 3
    gone = asker(PictureItem("gone", "/no/such/file"), [CAPTION, BOXES])
    assert [type(each) for each in gone] == [ImageError] * 2


def test_a_service_gets_pages_as_pictures(client: FakeClient, asker: ServiceAsker, tmp_path: Path) -> None:
    """A service gets pages of PDFs and TIFF files as pictures; a frame is sent as an option."""
    (tmp_path / "d.pdf").write_bytes(pdf())
    pages = [drawn(24, 16, frame=index) for index in range(3)]
    (tmp_path / "e.tiff").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    for name, page, size in (("d.pdf", 2, (300, 150)), ("d.pdf", None, (300, 150)), ("e.tiff", 3, (24, 16))):
        asker(PictureItem(name, str(tmp_path / name), page=page), [CAPTION])
        sent = client.calls[-1][0]
        assert isinstance(sent, Image.Image)
        assert sent.size == size
        assert "page" not in client.calls[-1][-1]
    assert sent.tobytes() == pages[2].tobytes()
    asker(PictureItem("e.tiff", str(tmp_path / "e.tiff"), frame=2), [CAPTION])
    assert (type(client.calls[-1][0]), client.calls[-1][-1]) == (bytes, {"frame": 2})
    (wrong,) = asker(PictureItem("d.pdf", str(tmp_path / "d.pdf"), page=9), [CAPTION])
    assert "from 1 to 3, got 9" in str(wrong)


def test_what_a_service_would_refuse_is_not_sent(client: FakeClient, item: PictureItem) -> None:
    """A picture with more bytes than a service accepts is not sent."""
    count = len(item.read())
    for most, sent in ((count, 1), (count - 1, 0)):
        client.calls.clear()
        limits = replace(DEFAULT_LIMITS, max_bytes=most)
        (outcome,) = ServiceAsker(lambda ask: ask(client), limits)(item, [CAPTION])  # type: ignore[arg-type]
        assert (len(client.calls), isinstance(outcome, ImageTooLarge)) == (sent, not sent)


class FakeLoaded:
    """A model whose queue holds three requests; it counts the requests under way."""

    def __init__(self) -> None:
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0
        self.calls: list[Any] = []

    def info(self) -> dict[str, Any]:
        """The limit of the queue."""
        return {"limits": {"max_queue": 3}}

    def submit_all(self, picture: Any, asks: Any, **options: Any) -> list[Future[Any]]:
        """Record a call and count its requests as under way."""
        self.calls.append((picture, asks, options))
        with self.lock:
            self.under_way += len(asks)
            self.most = max(self.most, self.under_way)
        return [self._future(task) for task, _ in asks]

    def _future(self, task: Any) -> Future[Any]:
        """A future that is answered after a moment."""
        future: Future[Any] = Future()

        def end() -> None:
            with self.lock:
                self.under_way -= 1
            future.set_result(answer(task))

        threading.Timer(0.005, end).start()  # so that requests overlap
        return future


def test_a_model_gets_no_more_than_its_queue_takes(item: PictureItem) -> None:
    """For any number of threads and questions, a model never gets more requests than its queue holds;
    pictures are passed as paths."""
    model = FakeLoaded()
    asker = ModelAsker(model)

    def ask() -> None:
        for _ in range(5):
            assert [each.task for each in asker(item, [CAPTION, BOXES])] == ["<CAPTION>", "<OD>"]  # type: ignore[union-attr]

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model.calls) == 30
    assert model.most <= 3
    assert model.calls[0] == (item.source, [(CAPTION.task, None), (BOXES.task, None)], {})


def test_a_model_reads_pages_itself(item: PictureItem) -> None:
    """A model gets the page as an option and reads it itself; a function that gives bytes is passed on, and
    its error names the picture."""
    model = FakeLoaded()
    ModelAsker(model)(PictureItem("d.pdf", "d.pdf", page=3), [GREEDY])
    assert model.calls[-1] == ("d.pdf", [(GREEDY.task, None)], {"num_beams": 1, "page": 3})

    def fail() -> bytes:
        raise ConnectionError("the storage is away")

    ModelAsker(model)(PictureItem("s3://b/a", fail), [CAPTION])
    with pytest.raises(ImageError, match="'s3://b/a' can't be read: the storage is away"):
        model.calls[-1][0]()
