"""A request on its way through the engine, from arrival to the outcome in its future. Imports no torch."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf

from florence.engine.futures import settle
from florence.engine.request import EngineTimings, Generation, Request
from florence.engine.sequence import SequenceState
from florence.errors import Closed, EngineError, FlorenceError
from florence.model.chunks import Chunks


@dataclass(slots=True, eq=False)
class Entry:
    """Times are readings of `time.monotonic()`; `taken`: when it left the queue, `encoded`: when it was."""

    request: Request
    future: Future[Generation]
    arrived: float = field(default_factory=time.monotonic)
    taken: float = 0.0
    encoded: float = 0.0
    sequence: SequenceState | None = None

    @property
    def deadline(self) -> float:
        """When nobody waits for the answer any more."""
        return inf if self.request.deadline is None else self.request.deadline

    @property
    def queue_s(self) -> float:
        """Seconds it waited; until now if it still does."""
        return (self.taken or time.monotonic()) - self.arrived

    def timings(self) -> EngineTimings:
        """Of an entry whose sequence ends now."""
        return EngineTimings(
            queue_s=self.queue_s,
            encode_s=self.encoded - self.taken,
            decode_s=time.monotonic() - self.encoded,
        )

    def settle(self, outcome: Generation | FlorenceError) -> bool:
        """Put the outcome into the future; False if it was cancelled meanwhile."""
        return settle(self.future, outcome)


@dataclass(slots=True)
class Encoding:
    """Requests that are being encoded together, part by part. `pictures_before`: that went through the tower
    before theirs; `seconds`: that it took so far."""

    entries: list[Entry]
    parts: Chunks[list[SequenceState]]
    pictures_before: int
    seconds: float = 0.0


def stopped(cause: Exception | None = None) -> Closed:
    """The error of a request that the engine's end overtook; `cause`: what ended it, if it was an error."""
    error = Closed("the engine stopped before the request was finished; send it to another instance")
    error.__cause__ = cause
    return error


def fault_of(error: Exception) -> FlorenceError:
    """What the caller sees of an exception; the log has all of it. Whoever keeps it keeps no request and no
    tensor, which the frames of its traceback hold."""
    error.__traceback__ = error.__context__ = None
    if isinstance(error, FlorenceError):
        return error
    fault = EngineError(f"the request failed on the device: {type(error).__name__}")
    fault.__cause__ = error
    return fault
