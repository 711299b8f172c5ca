"""Text while it is generated, on the small random checkpoint: complete, in order, before the answer."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from florence import Florence2
from florence.errors import DeadlineExceeded, OptionError, TaskError
from florence.images.preprocess import InputSize
from florence.readers.picture import LocalReader
from florence.runtime.futures import generate
from florence.runtime.pipeline import TaskRequest
from florence.runtime.streaming import TextStreamer
from florence.types.options import RequestParameters

MOST = 24  # tokens


def spoken(raw_text: str) -> str:
    """The text without its special tokens."""
    return raw_text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")


@pytest.mark.parametrize("task", ["<CAPTION>", "ocr", "region_to_description"])
def test_the_pieces_are_the_answers_text(library: Florence2, picture: Path, task: str) -> None:
    """Several pieces join to the text that `run` gives with one beam."""
    text = "<loc_1><loc_2><loc_500><loc_600>" if task.startswith("region") else None
    with library.stream(picture, task, text, max_new_tokens=MOST) as stream:
        pieces = list(stream)
        assert list(stream) == []
    assert len(pieces) > 5
    assert "".join(pieces) == spoken(stream.answer.raw_text)
    whole = library.run(picture, task, text, max_new_tokens=MOST, num_beams=1)
    assert stream.answer.token_ids == whole.token_ids


def test_pieces_come_while_the_answer_is_not_there(library: Florence2, picture: Path) -> None:
    """The first piece comes before the last token is decoded, while the request can still be cancelled."""
    with library.stream(picture, "<CAPTION>", max_new_tokens=800, min_new_tokens=800) as stream:
        assert next(stream)
    with pytest.raises(CancelledError):
        _ = stream.answer
    with pytest.raises(CancelledError):
        list(stream)


def test_all_pieces_come_before_the_answer(library: Florence2, picture: Path) -> None:
    """All pieces come before the answer, with other requests at the same time."""
    received: list[list[str]] = [[] for _ in range(6)]
    futures = [
        library.submit(picture, "<CAPTION>", num_beams=1, max_new_tokens=MOST, on_text=pieces.append)
        for pieces in received
    ]
    for pieces, future in zip(received, futures, strict=True):
        answer = future.result(PATIENCE_S)
        assert "".join(pieces) == spoken(answer.raw_text)


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("<CAPTION>", {"num_beams": 3}, OptionError, "a stream needs num_beams=1, got 3"),
        ("<OD>", {}, TaskError, "<OD> does not answer in text"),
        ("<CAPTION>", {"num_beams": 0}, OptionError, "num_beams must be an integer from 1 to 8"),
        ("<CAPTION>", {"timeout_s": 1e-4}, DeadlineExceeded, "time"),
    ],
)
def test_what_cant_be_streamed_says_why(
    library: Florence2, picture: Path, task: str, options: Any, error: type[Exception], message: str
) -> None:
    """A request that can't be streamed fails before the first piece, with the reason."""
    with pytest.raises(error, match=message):
        next(library.stream(picture, task, **options))


def test_on_text_without_asking_for_one_beam_is_refused(library: Florence2, picture: Path) -> None:
    """`submit` with `on_text` does not change the number of beams; more than one is refused."""
    with pytest.raises(OptionError, match="num_beams=1"):
        library.submit(picture, "<CAPTION>", on_text=print).result(PATIENCE_S)


@pytest.mark.parametrize("least", [0, 12])
def test_on_token_gets_each_token_as_it_is_decided(library: Florence2, picture: Path, least: int) -> None:
    """`on_token` gets each token in the engine's thread: forced first and last ones and EOS, but not the
    start token."""
    received: list[tuple[int, str]] = []

    def on_token(token_id: int) -> None:
        received.append((token_id, threading.current_thread().name))

    parameters = RequestParameters(num_beams=1, max_new_tokens=12, min_new_tokens=least)
    pipeline = library.pipeline
    checked = pipeline.check(TaskRequest("<CAPTION>", None, parameters, on_text=print))
    height, width = library.info()["picture_size"]
    read = LocalReader(InputSize(height, width, 3)).read(picture)
    (request,), _ = pipeline.prepare(checked, read, on_token=on_token)
    generation = generate(library.engine, request).result(PATIENCE_S)
    assert tuple(token_id for token_id, _ in received) == generation.token_ids[1:]
    assert generation.token_ids[-1] == 2
    assert {name for _, name in received} == {"florence-engine"}


class AtOnce(Executor):
    """An executor that runs each call in the caller's thread."""

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
        """Run the function now."""
        future: Future[Any] = Future()
        future.set_result(function(*args, **named))
        return future


class Letters:
    """A decoder in which token 0 is "a"; the end of the text is "z"."""

    def take(self, token_id: int) -> str:
        """The letter of a token."""
        return chr(ord("a") + token_id)

    def rest(self) -> str:
        """The text held back until the end."""
        return "z"


def test_a_callback_that_fails_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """A failing callback is not called again, and is logged once."""
    received = []

    def on_text(text: str) -> None:
        received.append(text)
        if text == "b":
            raise ZeroDivisionError("on b")

    streamer = TextStreamer(Letters(), on_text, AtOnce())
    for token_id in range(4):
        streamer.on_token(token_id)
    streamer.end()
    assert received == ["a", "b"]
    assert caplog.text.count("ZeroDivisionError: on b") == 1


def test_an_answer_is_not_lost_to_a_callback_that_fails(
    library: Florence2, picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing callback affects neither its own answer nor the next one."""
    seen = threading.Event()

    def on_text(text: str) -> None:
        seen.set()
        raise ZeroDivisionError

    for _ in range(2):
        future = library.submit(picture, "<CAPTION>", num_beams=1, max_new_tokens=4, on_text=on_text)
        assert future.result(PATIENCE_S).finish_reason == "length"
    assert seen.is_set()
    assert "not called again" in caplog.text
