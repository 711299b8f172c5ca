"""A request that is being decoded, as the runner knows it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from florence.engine.request import Request
from florence.engine.slots import Slot


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request that is being decoded. `finite`: whether all values that it has written are known to be
    finite. `ended`: whether its search is known to have ended; its answer is on the way from the device.
    `dropped`: whether its slot has been freed."""

    request: Request
    slot: Slot
    picture_tokens: int
    encoder_length: int
    steps: int = 0
    finite: bool = False
    ended: bool = False
    dropped: bool = False
