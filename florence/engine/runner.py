"""What the engine's loop needs of a device. Imports no torch: `device.runner.Runner` is the real one."""

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
        """Make this thread ready, with so many CPU threads for one operation (None: torch's choice)."""

    def reset(self) -> None:
        """Make new buffers after a fault; raises what the device raises if it is gone for good."""

    def fits(self, requests: Iterable[Request]) -> int:
        """How many of these requests, from the first on, are to be encoded together: as many as there is room
        for, or fewer where that is better."""

    def rest(self) -> None:
        """Do what waits for a moment in which no request is on the device."""

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[Wait | None, None, int]:
        """Encode requests together and place them, yielding between parts of the work; returns the number of
        pictures that were not in the feature cache. Closing it gives all slots back.

        Where the device does a part beside steps, it yields what waits for that part; it may do so again and
        again until the last one is done."""

    def step(
        self, sequences: Sequence[SequenceState]
    ) -> Sequence[tuple[SequenceState, Hypothesis | FlorenceError]]:
        """One decode step; those that are finished, each with its outcome. Their slots are free again."""

    def drop(self, sequence: SequenceState) -> None:
        """Free the slot of a request, which may not be finished."""

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """Whether the length limit, not the model, ended the sequence."""
