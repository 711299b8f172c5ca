"""Requests that have no outcome yet, and which of them were cancelled or expired. Imports no torch.

A cancellation is noted when it happens, and deadlines are compared when the earliest has passed: a look costs
nothing, however many requests wait, while none of them is cancelled or expires.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from weakref import ref

from florence.engine.sequence import SequenceState


class Pending:
    """Not safe for threads, so its owner locks; but requests may be cancelled in any thread, whatever locks
    that holds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sequences: dict[SequenceState, None] = {}  # a set in order of arrival
        self._cancelled: deque[ref[SequenceState]] = deque()
        self._next_deadline = inf  # no later than the earliest of theirs

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(self._sequences)

    def add(self, sequence: SequenceState) -> None:
        """Watch a new request."""
        self._sequences[sequence] = None
        self._next_deadline = min(self._next_deadline, sequence.deadline)
        sequence.cancellations = self._cancelled

    def remove(self, sequence: SequenceState) -> None:
        """Stop watching a request, which gets its outcome now."""
        self._sequences.pop(sequence, None)

    def cancelled_or_expired(self) -> set[SequenceState]:
        """Requests that were cancelled since the last look, and those whose deadline has passed."""
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
