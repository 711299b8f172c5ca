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
"""Waits until the device has done certain work."""


class Phase(StrEnum):
    """The phase that a request is in. `DONE`: it has its outcome."""

    WAITING = "waiting"
    ENCODING = "encoding"
    DECODING = "decoding"
    DONE = "done"


def _ignore(*_: object) -> None:
    pass


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class StepSequence:
    """What a decode step needs to know of a request. `encoder_length`: positions of picture and prompt.
    `steps`: how many it has taken. `sampled`: whether it samples. `penalized`: whether it has a repetition
    penalty. `adapter`: its adapter's slot, 0 for none."""

    slot: Slot = UNPLACED
    encoder_length: int = 0
    steps: int = 0
    sampled: bool = False
    penalized: bool = False
    adapter: int = 0


@dataclass(slots=True, eq=False)
class SequenceState(StepSequence):
    """A request in the engine. Only the engine's thread changes it; `cancel` is thread-safe.

    Set by the runner, with the fields for steps: `picture_tokens`; `finite`: whether all that it wrote to the
    caches is known to be finite; `ended`: its search is known to have ended, and its answer is being copied
    to the host; `dropped`: its slot may belong to another request. Set by the engine: `on_taken`, called when
    the request leaves the queue; `phase`; `cancelled`; `arrived_s`, `taken_s`, `encoded_s`: times by the
    engine's clock; `cancellations`: the queue through which `cancel` notifies the engine.
    """

    request: Request
    picture_tokens: int = 0
    finite: bool = False
    ended: bool = False
    dropped: bool = False

    on_done: OnDone = _ignore
    on_taken: Callable[[], object] = _ignore
    phase: Phase = Phase.WAITING
    cancelled: bool = False
    arrived_s: float = 0.0
    taken_s: float | None = None  # left the queue
    encoded_s: float = 0.0
    cancellations: deque[ref[SequenceState]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        options = self.request.options
        self.sampled, self.penalized = options.do_sample, options.repetition_penalty != 1

    def cancel(self) -> None:
        """Cancel the request: the engine frees its slot before the next step. Thread-safe, and takes no lock.
        Does nothing once the request has its outcome."""
        self.cancelled = True
        self.cancellations.append(ref(self))  # a weak reference: an idle engine must not keep a picture

    @property
    def deadline(self) -> float:
        """When the request expires."""
        return inf if self.request.deadline is None else self.request.deadline

    def place(self, slot: Slot, picture_tokens: int, encoder_length: int) -> None:
        """Give the request a slot."""
        self.slot, self.picture_tokens, self.encoder_length = slot, picture_tokens, encoder_length
        self.dropped = False

    def queue_s(self, now: float) -> float:
        """Seconds spent in the queue, until `now` if it is still there."""
        return (now if self.taken_s is None else self.taken_s) - self.arrived_s

    def timings(self, now: float) -> EngineTimings:
        """The timings of a request whose decoding ends `now`."""
        return EngineTimings(
            queue_s=self.queue_s(now),
            encode_s=self.encoded_s - (self.taken_s or 0.0),
            decode_s=now - self.encoded_s,
        )

    def complete(self, outcome: Generation | FlorenceError) -> bool:
        """Call `on_done` with the outcome. If the request was cancelled before, pass `ClientLeft` instead and
        return False."""
        wanted, self.phase = not self.cancelled, Phase.DONE
        self.on_done(outcome if wanted else ClientLeft())
        return wanted


@dataclass(slots=True)
class EncodeBatch:
    """Requests that are being encoded together, part by part. `seconds`: spent on it so far. `wait`: waits
    for the latest part where it runs beside steps, else None."""

    sequences: list[SequenceState]
    parts: Generator[Wait | None, None, int]
    seconds: float = 0.0
    wait: Wait | None = None
    _left_s: float = 0.0  # when the latest part ended

    def advance(self, clock: Callable[[], float], *, wait: bool) -> int | None:
        """Do one part. Returns the number of encoded pictures if it was the last part, else None. `wait`:
        wait first for the part before, which may still be running beside steps."""
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
