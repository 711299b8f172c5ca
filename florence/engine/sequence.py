"""One request's state in the engine, from its arrival to its outcome. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from weakref import ref

from florence.engine.request import EngineTimings, Generation, Request
from florence.engine.slots import UNPLACED, Slot
from florence.errors import ClientLeft, FlorenceError

OnDone = Callable[[Generation | FlorenceError], object]
"""Called once with a request's outcome, on the engine's thread; it must be quick and must not raise."""


Wait = Callable[[], object]
"""Waits until the device has done some work."""


class Phase(StrEnum):
    """Where a request is. `DONE`: it has its outcome."""

    WAITING = "waiting"
    ENCODING = "encoding"
    DECODING = "decoding"
    DONE = "done"


def _ignore(outcome: Generation | FlorenceError) -> None:
    pass


def _go_on() -> None:
    pass


@dataclass(slots=True, eq=False, weakref_slot=True)
class SequenceState:
    """A request in the engine. The engine's thread alone changes it, but for `cancel`.

    Of the runner: `slot`; `adapter`, its adapter's slot, 0 for none; `picture_tokens` and `encoder_length`,
    of the picture and of picture and prompt together; `steps` taken; `finite`: all that it wrote to the
    caches is known to be finite; `ended`: its search is known to have ended, and its answer is on the way
    from the device; `dropped`: its slot may be another's. Of the engine: `on_taken`, called when it leaves
    the queue; `phase`; `cancelled`; times by the engine's clock; `cancellations`: where `cancel` leaves word
    for it.
    """

    request: Request
    slot: Slot = UNPLACED
    adapter: int = 0
    picture_tokens: int = 0
    encoder_length: int = 0
    steps: int = 0
    finite: bool = False
    ended: bool = False
    dropped: bool = False

    on_done: OnDone = _ignore
    on_taken: Callable[[], object] = _go_on
    phase: Phase = Phase.WAITING
    cancelled: bool = False
    arrived_s: float = 0.0
    taken_s: float | None = None  # left the queue
    encoded_s: float = 0.0
    cancellations: deque[ref[SequenceState]] = field(default_factory=deque)

    def cancel(self) -> None:
        """Its answer is not wanted: the engine frees its slot before the next step. In any thread; waits for
        no lock. Does nothing once the request has its outcome."""
        self.cancelled = True
        self.cancellations.append(ref(self))  # no strong one: an idle engine must not keep a picture

    @property
    def deadline(self) -> float:
        """When the request expires."""
        return inf if self.request.deadline is None else self.request.deadline

    def place(self, slot: Slot, picture_tokens: int, encoder_length: int) -> None:
        """Give it a slot."""
        self.slot, self.picture_tokens, self.encoder_length = slot, picture_tokens, encoder_length
        self.dropped = False

    def queue_s(self, now: float) -> float:
        """Seconds it waited in the queue, until `now` if it still does."""
        return (now if self.taken_s is None else self.taken_s) - self.arrived_s

    def timings(self, now: float) -> EngineTimings:
        """Of a request whose decoding ends `now`."""
        return EngineTimings(
            queue_s=self.queue_s(now),
            encode_s=self.encoded_s - (self.taken_s or 0.0),
            decode_s=now - self.encoded_s,
        )

    def complete(self, outcome: Generation | FlorenceError) -> bool:
        """Hand over the outcome; `ClientLeft` in its place, and False, if it was cancelled before."""
        wanted, self.phase = not self.cancelled, Phase.DONE
        self.on_done(outcome if wanted else ClientLeft())
        return wanted


@dataclass(slots=True)
class EncodeBatch:
    """Requests that are being encoded together, part by part. `seconds`: spent on it so far. `wait`: for the
    latest part, where the device does it beside steps."""

    sequences: list[SequenceState]
    parts: Generator[Wait | None, None, int]
    seconds: float = 0.0
    wait: Wait | None = None
    _left_s: float = 0.0  # when the latest part ended

    def advance(self, clock: Callable[[], float], *, wait: bool) -> int | None:
        """Do one part; the number of pictures that were encoded, if it was the last. `wait`: for the one
        before, which may have been going on beside steps."""
        started = clock() if self.wait is None else self._left_s
        try:
            if wait and self.wait is not None:
                self.wait()
            self.wait = next(self.parts)
        except StopIteration as end:
            pictures: int = end.value
            return pictures
        finally:
            self._left_s = clock()
            self.seconds += self._left_s - started
        return None

    @property
    def is_done(self) -> bool:
        """Whether all of them have their outcomes already."""
        return all(sequence.phase is Phase.DONE for sequence in self.sequences)
