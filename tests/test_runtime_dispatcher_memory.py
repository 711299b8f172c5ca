"""Requests that fail or are cancelled release their pictures at once, at every stage."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from dispatching import Gauges, SlowPicture, ask, input_size, occupy
from fake_runner import FakeRunner
from waiting import PATIENCE_S, wait_until

from florence import Florence2
from florence.engine.config import EngineConfig
from florence.engine.loop import Engine
from florence.errors import ImageError, RequestError
from florence.images.seen import ORIGINAL, View
from florence.readers.picture import LocalReader, PictureSource, ReadPicture
from florence.readers.readers import Readers
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.pipeline import TaskRequest
from florence.types.options import RequestParameters


def test_a_cancelled_request_keeps_no_picture_though_the_readers_are_busy(
    dispatcher: Dispatcher, slow: SlowPicture, picture: Path
) -> None:
    """A cancelled request releases its picture while all readers are busy; otherwise clients that leave
    would fill the memory."""
    occupy(dispatcher, slow)
    waiting = SlowPicture(picture.read_bytes())
    left = ref(waiting)
    (future,) = ask(dispatcher, waiting)
    del waiting
    assert future.cancel()
    assert left() is None


@pytest.mark.parametrize("image", [b"no picture", b"\x89PNG\r\n\x1a\n" + b"damaged" * 9, None])
@pytest.mark.parametrize("tasks", [["<CAPTION>"], ["<CAPTION>", "<OD>"]])
def test_a_failed_request_keeps_no_picture(
    dispatcher: Dispatcher, image: bytes | None, tasks: list[str]
) -> None:
    """A failed request keeps no picture, even while the caller holds the future with its error, which may
    be its own cause, and without garbage collection of cycles."""

    class Source:
        def __call__(self) -> bytes:
            if image is None:
                error = ValueError("no bytes")
                raise error from error
            return image

    gc.disable()
    try:
        source = Source()
        left = ref(source)
        futures = ask(dispatcher, source, *tasks)
        del source
        assert all(isinstance(one.exception(PATIENCE_S), ImageError | ValueError) for one in futures)
        wait_until(lambda: left() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize(("task", "region"), [("<REGION_TO_OCR>", (0.0, 0.0, 9000.0, 9.0)), ("<OCR>", None)])
def test_a_request_that_fails_after_its_picture_was_read_keeps_no_pixels(
    library: Florence2, runner: FakeRunner, gauges: Gauges, picture: Path, task: str, region: Any
) -> None:
    """A region outside the picture, or a prompt too long for the engine, leaves no pixels while the future
    is held."""
    pipeline, pixels = library.pipeline, list[ref[Any]]()

    class Noting(LocalReader):
        def read(self, image: PictureSource, view: View = ORIGINAL) -> ReadPicture:
            outcome = super().read(image, view)
            pixels.append(ref(outcome.pixels))
            return outcome

    engine = Engine(runner, EngineConfig(max_prompt_tokens=3))
    dispatcher = Dispatcher(pipeline, engine, Readers([Noting(input_size(library))]), gauges)
    gc.disable()
    try:
        request = TaskRequest(task, None, RequestParameters(), region)
        (future,) = dispatcher.submit(picture, [request])
        assert isinstance(future.exception(PATIENCE_S), RequestError)
        wait_until(lambda: pixels[0]() is None)
    finally:
        gc.enable()
        dispatcher.close()
