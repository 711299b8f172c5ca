"""The Python library under load: each request has one outcome, whatever else is sent or cancelled."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from weakref import ref

import pytest
from goldens import Goldens
from waiting import PATIENCE_S

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.errors import (
    Closed,
    DeadlineExceeded,
    ImageError,
    Overloaded,
    RegionError,
    TaskError,
)


def test_in_run_many_one_bad_item_fails_alone_and_order_is_kept(library: Florence2, picture: Path) -> None:
    """In `run_many` a bad item fails alone, and outcomes keep their order."""
    answers = library.run_many(
        [
            (picture, "<CAPTION>"),
            (b"no picture", "<CAPTION>"),
            (picture, "<OD>", "text that it does not take"),
            (picture, "<REGION_TO_CATEGORY>", (10, 10, 9000, 20)),
            ("no/such/file.png", "<OCR>"),
            (picture, "<CAPTION_TO_PHRASE_GROUNDING>", "a car"),
        ],
        max_new_tokens=4,
    )
    assert [type(answer) for answer in answers[:4]] == [Answer, ImageError, TaskError, RegionError]
    assert isinstance(answers[4], ImageError)
    assert isinstance(answers[5], Answer)
    assert answers[5].task == "<CAPTION_TO_PHRASE_GROUNDING>"


@pytest.mark.parametrize(("queue", "most"), [(256, 40 + 9), (5, 5)])
def test_run_many_keeps_the_engine_full_and_the_queue_from_overflowing(
    goldens: Goldens, monkeypatch: pytest.MonkeyPatch, queue: int, most: int
) -> None:
    """`run_many` keeps one decode batch and one encode batch in flight, but never more than the
    queue holds."""
    open_futures: list[Future[int]] = []
    counts: list[int] = []

    class Counted(Future[int]):
        """A future that records the number of open futures when its result is taken."""

        def result(self, timeout: float | None = None) -> int:
            counts.append(len(open_futures))
            open_futures.remove(self)
            return len(counts)

    def submit(*item: object) -> Future[int]:
        open_futures.append(Counted())
        return open_futures[-1]

    config = EngineConfig(max_batch_size=40, max_encode_batch=9, max_queue=queue)
    with Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32", config=config) as model:
        monkeypatch.setattr(model, "submit", submit)
        answers = model.run_many((b"", "<CAPTION>") for _ in range(100))
    assert (max(counts), answers) == (most, [*range(1, 101)])


def test_a_deadline_that_passes_is_an_error(library: Florence2, picture: Path) -> None:
    """An expired time limit is an error."""
    with pytest.raises(DeadlineExceeded):
        library.run(picture, "<OD>", timeout_s=1e-6)


def test_a_deadline_holds_behind_pictures_that_take_long_to_read(library: Florence2, picture: Path) -> None:
    """A request expires although no reader has taken its picture yet."""
    release = threading.Event()

    def slow() -> bytes:
        assert release.wait(PATIENCE_S)
        return picture.read_bytes()

    held = [library.submit(slow, "<CAPTION>", max_new_tokens=2) for _ in range(4)]
    with pytest.raises(DeadlineExceeded):
        library.run(picture, "<CAPTION>", timeout_s=0.2)
    assert not any(future.done() for future in held)
    release.set()
    assert all(future.result(PATIENCE_S) for future in held)


def test_a_cancelled_future_is_never_answered_and_later_ones_are(library: Florence2, picture: Path) -> None:
    """Cancelled futures end as cancelled, and a later request is answered."""
    futures = [library.submit(picture, "<MORE_DETAILED_CAPTION>", min_new_tokens=1000) for _ in range(3)]
    assert all(future.cancel() for future in futures)
    assert library.run(picture, "<CAPTION>", max_new_tokens=3).finish_reason == "length"
    with pytest.raises(CancelledError):
        futures[0].result(0)
    assert wait(futures, PATIENCE_S).not_done == set()  # `wait` for several futures returns too


def test_more_than_the_queue_holds_is_refused_and_the_rest_answered(goldens: Goldens, picture: Path) -> None:
    """Requests beyond the queue's limit are refused with a time to retry, and the others are answered."""
    tight = EngineConfig(max_batch_size=1, max_queue=3)
    release = threading.Event()

    def slow() -> bytes:
        assert release.wait(PATIENCE_S)
        return picture.read_bytes()

    with Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32", config=tight) as model:
        futures = [model.submit(slow, "<CAPTION>", max_new_tokens=2) for _ in range(20)]
        release.set()
        outcomes = [future.exception(PATIENCE_S) for future in futures]
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(outcome, Overloaded) and outcome.retry_after_s >= 1 for outcome in refused)
    assert len(refused) == 17


def test_closing_answers_what_came_and_refuses_the_rest(goldens: Goldens, picture: Path) -> None:
    """Closing answers the accepted requests and refuses new ones."""
    model = Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32")
    assert model.ready
    futures = [model.submit(picture, "<CAPTION>", max_new_tokens=2) for _ in range(3)]
    model.close()
    assert not model.ready
    assert all(isinstance(future.result(0), Answer) for future in futures)
    with pytest.raises(Closed):
        model.run(picture, "<CAPTION>")
    model.close()


def test_many_threads_get_their_own_answers(library: Florence2, goldens: Goldens) -> None:
    """Each thread gets the answer that its request gets alone."""
    names = ["a0_rgb_640x480.png", "a2_l_1024x256.png", "a3_p_64x64.png"]
    requests = [(goldens.path(name), task) for name in names for task in ("<CAPTION>", "<OD>")]
    alone = [library.run(path, task, max_new_tokens=6).token_ids for path, task in requests]
    together: dict[int, Future[Answer]] = {}

    def ask(index: int) -> None:
        together[index] = library.submit(*requests[index], max_new_tokens=6)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index].result(PATIENCE_S).token_ids for index in range(len(requests))] == alone


class Source:
    """A picture's bytes, as an object whose release can be observed."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self) -> bytes:
        return self.data


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_picture_is_let_go_with_its_request(goldens: Goldens, picture: Path, cancelled: bool) -> None:
    """A picture's memory is freed with its request, even if the caller keeps the future, without the garbage
    collector."""
    gc.collect()
    gc.disable()
    try:
        with Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32", threads=1) as model:
            source = Source(picture.read_bytes())
            left = ref(source)
            future = model.submit(source, "<CAPTION>", max_new_tokens=3)
            del source
            if cancelled:
                future.cancel()
            else:
                future.result(PATIENCE_S)
        assert left() is None
    finally:
        gc.enable()
