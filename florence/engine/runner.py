"""The interface between the engine's loop and a device. Imports no torch; `device.runner.Runner` implements
it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from florence.engine.request import Request
from florence.engine.sequence import SequenceState, Wait
from florence.errors import FlorenceError

if TYPE_CHECKING:
    from florence.engine.device.beams.reference import Hypothesis


class StepRunner(Protocol):
    """Encodes requests and takes decode steps. All methods are called on the engine's thread."""

    @property
    def chunks_ahead(self) -> int:
        """How many parts of an encode may be under way on the device when `encode_parts` yields."""

    def prepare(self, threads: int | None = None) -> None:
        """Make this thread ready to run steps, with `threads` CPU threads for each operation (None: torch's
        choice)."""

    def reset(self) -> None:
        """Make new buffers after a fault; raises what the device raises if it is gone for good."""

    def fits(self, requests: Iterable[Request]) -> int:
        """How many of these requests, from the first on, to encode together: as many as there is room for, or
        fewer where that is better."""

    def rest(self) -> None:
        """Do deferred work that needs a moment without requests on the device."""

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[Wait | None, None, int]:
        """Encode requests together and place them, yielding between parts of the work; returns the number of
        pictures that were not in the feature cache. Closing the generator gives all slots back.

        Where a part runs beside steps, the generator yields a function that waits for that part; it may do so
        repeatedly until the last part is done."""

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> Sequence[tuple[SequenceState, Hypothesis | FlorenceError]]:
        """Run one decode step. Returns finished sequences, each with its outcome; their slots are free
        again."""

    def drop(self, sequence: SequenceState) -> None:
        """Free the slot of a request, whether or not it is finished."""

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """Whether the length limit, not the model, ended the sequence."""
