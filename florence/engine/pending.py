"""Requests that have no outcome yet: each gets exactly one here, and is reported. Imports no torch.

A cancellation is queued when it happens, and deadlines are compared only once the earliest has passed. So a
check costs nothing, however many requests wait, while none is cancelled or expires.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Literal
from weakref import ref

from florence.engine.observer import FinishReason, Observer
from florence.engine.request import Generation
from florence.engine.sequence import Phase, SequenceState
from florence.errors import FlorenceError

if TYPE_CHECKING:
    from florence.engine.device.beams.reference import Hypothesis


class Pending:
    """Not thread-safe: the owner locks. But any thread may cancel a request, whatever locks it holds."""

    def __init__(self, clock: Callable[[], float], observer: Observer) -> None:
        self._clock, self._observer = clock, observer
        self._sequences: dict[SequenceState, None] = {}  # an ordered set, in order of arrival
        self._cancelled: deque[ref[SequenceState]] = deque()
        self._next_deadline = inf  # at most the earliest deadline

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(self._sequences)

    def add(self, sequence: SequenceState) -> None:
        """Watch a new request."""
        self._sequences[sequence] = None
        self._next_deadline = min(self._next_deadline, sequence.deadline)
        sequence.cancellations = self._cancelled

    def complete(self, sequence: SequenceState, outcome: Generation | FlorenceError) -> bool:
        """Give a request its outcome; False if it was cancelled before."""
        self._sequences.pop(sequence, None)
        return sequence.complete(outcome)

    def finish(self, sequence: SequenceState, made: Hypothesis, reason: Literal["stop", "length"]) -> None:
        """Give a request its generation."""
        now = self._clock()
        generation = Generation(
            token_ids=tuple(made.token_ids),
            token_logprobs=tuple(made.token_logprobs),
            score=made.score,
            finish_reason=reason,
            picture_tokens=sequence.picture_tokens,
            timings=sequence.timings(now),
            token_windows=tuple(made.token_windows),
        )
        wanted = self.complete(sequence, generation)
        ending = FinishReason(reason) if wanted else FinishReason.CANCELLED
        self._observer.ended(ending, len(generation.token_logprobs), sequence.queue_s(now))

    def fail(self, sequences: Iterable[SequenceState], error: FlorenceError, ending: FinishReason) -> None:
        """Fail those that have no outcome yet. All are failed before anything is reported."""
        failed = [(one, self.complete(one, error)) for one in sequences if one.phase is not Phase.DONE]
        now = self._clock()
        for sequence, wanted in failed:
            queue_s = sequence.queue_s(now)
            self._observer.ended(ending if wanted else FinishReason.CANCELLED, queue_s=queue_s)

    def cancelled_or_expired(self) -> set[SequenceState]:
        """Requests that were cancelled since the last call, and those whose deadline has passed."""
        found = set()
        while self._cancelled:
            sequence = self._cancelled.popleft()()
            if sequence is not None and sequence in self._sequences:
                found.add(sequence)
        now = self._clock()
        if now > self._next_deadline:
            found |= {sequence for sequence in self if now > sequence.deadline}
            left = (sequence.deadline for sequence in self if sequence not in found)
            self._next_deadline = min(left, default=inf)
        return found
