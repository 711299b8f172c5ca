"""A request that is being decoded, as the runner knows it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from florence.engine.request import Request
from florence.engine.slots import Slot


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request that is being decoded. `sound`: whether all that it has written is known to be numbers.
    `ended`: whether its search is known to be done; its answer is on the way from the device. `gone`:
    whether its place is another's."""

    request: Request
    slot: Slot
    picture_tokens: int
    encoder_length: int
    steps: int = 0
    sound: bool = False
    ended: bool = False
    gone: bool = False
