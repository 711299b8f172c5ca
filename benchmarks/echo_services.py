"""The real service in front of an echo: of 0 ms for `light_path.py`, of 10 ms for `bulk.py`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.answers.answer import Answer, OriginalAnswer
from florence.server import service
from florence.settings import read_settings
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.results import Text
from florence.types.tasks import TASKS

ANSWER = OriginalAnswer(
    task="<CAPTION>",
    finish_reason="stop",
    usage=Usage(picture_tokens=577, prompt_tokens=8, generated_tokens=4),
    timings=Timings(queue_s=0.0, encode_s=0.0, decode_s=0.0, total_s=0.0),
    checkpoint="echo",
    text='{"<CAPTION>": "an echo"}',
)


class EchoModel:
    """A stand-in for `florence.Florence2` that answers each request at once.

    For <OCR> it first decodes the picture from base64, here on the event loop; the real model does that where
    it reads pictures.
    """

    ready = alive = True
    tasks = TASKS

    def info(self) -> dict[str, str]:
        """The facts that the service shows."""
        return {"checkpoint": "echo", "device": "cpu", "dtype": "float32", "encode_stream": "off"}

    def memory(self) -> dict[str, int]:
        """No memory is reported."""
        return {}

    def submit_original(
        self, image: Callable[[], bytes], task: str, text: Any = None, **options: Any
    ) -> Future[OriginalAnswer]:
        """The canned answer, at once."""
        if task == "<OCR>":
            image()
        future: Future[OriginalAnswer] = Future()
        future.set_result(ANSWER)
        return future

    def close(self) -> None:
        """Do nothing."""


class SlowEcho(EchoModel):
    """An echo that answers a caption 10 ms after the previous one; ECHO_AT_ONCE: captions at the
    same time."""

    def __init__(self) -> None:
        self._device = ThreadPoolExecutor(int(os.environ.get("ECHO_AT_ONCE", "1")))
        self._answer = Answer.of(
            TASKS["<CAPTION>"],
            result=Text(text="an echo"),
            image_size=ImageSize(width=64, height=64),
            finish_reason="stop",
            usage=ANSWER.usage,
            timings=ANSWER.timings,
            checkpoint="echo",
            raw_text="an echo",
            token_ids=[],
            token_logprobs=[],
        )

    def submit(self, image: Any, task: Any = None, text: Any = None, **options: Any) -> Future[Answer]:
        """The answer, after its time on the device."""
        return self._device.submit(self._take)

    def _take(self) -> Answer:
        """Take the time of one answer."""
        time.sleep(0.01)
        return self._answer


def _service(make: Callable[[], EchoModel]) -> Any:
    """The service in front of this echo."""
    return service.build_service(
        read_settings(), 0, lambda settings, device, observer: make(), lambda settings: None
    )


echo = _service(EchoModel)
slow_echo = _service(SlowEcho)
