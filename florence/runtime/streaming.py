"""Streams an answer's text while it is generated: to a callback, or to an iterator.

With several beams no token is final until the search ends, and only text can be parsed in pieces, so streams
need one beam and a task that answers in text. Knows nothing about engines, devices or HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from queue import SimpleQueue

from florence.answers.answer import Answer
from florence.checkpoint.tokenizer import IncrementalDetokenizer
from florence.errors import OptionError, TaskError
from florence.types.tasks import Task

log = logging.getLogger(__name__)

OnText = Callable[[str], None]
"""Called with the next piece of an answer's text. Pieces come in order, all of them before the answer. It
must be quick, since other answers wait for it."""


def check_streamed(task: Task, beams: int, *, tiled: bool) -> None:
    """Raise `TaskError` or `OptionError`, which say why, where an answer can't be streamed."""
    if not task.kind.is_text:
        raise TaskError(f"{task.token} does not answer in text, so there is nothing to stream")
    if tiled:
        raise OptionError("an answer of tiles is merged when all are done, so it can't be streamed")
    if beams != 1:
        raise OptionError(
            f"a stream needs num_beams=1, got {beams}: beams compete until the last token, so no part of the "
            "answer is final before all of it is"
        )


class TextStreamer:
    """Calls a callback with the text of one request's tokens, not on the engine's thread.

    If the callback raises, the error is logged and it is not called again; the answer is not affected.
    """

    def __init__(self, detokenizer: IncrementalDetokenizer, on_text: OnText, executor: Executor) -> None:
        self._detokenizer = detokenizer
        self._on_text: OnText | None = on_text
        self._executor = executor

    def on_token(self, token_id: int) -> None:
        """Called on the engine's thread; returns at once."""
        self._executor.submit(lambda: self._give(self._detokenizer.take(token_id)))

    def end(self) -> None:
        """Pass on the text that was held back. Called in the executor, after the last token."""
        self._give(self._detokenizer.rest())

    def _give(self, text: str) -> None:
        if not text or self._on_text is None:
            return
        try:
            self._on_text(text)
        except Exception:
            log.exception("a callback for text failed; it is not called again")
            self._on_text = None


class AnswerStream:
    """Iterates over the pieces of an answer's text as they are generated; `answer` has the whole answer.

    The pieces joined are the generated text without `<s>`, `</s>` and `<pad>`. Iterating and `answer` raise
    the request's error. Leaving the context manager, or `close`, cancels a request that is not finished.
    """

    def __init__(self, start: Callable[[OnText], Future[Answer]]) -> None:
        self._pieces: SimpleQueue[str | None] = SimpleQueue()
        self._future = start(self._pieces.put)
        self._future.add_done_callback(lambda _: self._pieces.put(None))

    @property
    def answer(self) -> Answer:
        """Wait for the whole answer."""
        return self._future.result()

    def close(self) -> None:
        """Cancel the request, if it is not finished."""
        self._future.cancel()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._pieces.put(None)  # for the next call
        self._future.result()
        raise StopIteration

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
