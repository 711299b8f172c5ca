"""Upper limits for the counts of the large model, and the aims.

A change that lowers a count lowers its limit too; a limit rises only with a reason in the change's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BARS: Mapping[str, int] = MappingProxyType({"step": 143, "encode": 315})
"""Kernels of a decode step (64 requests x 3 beams, sequences of 128) and of an encode of 16 pictures."""

AIMS: Mapping[str, float] = MappingProxyType(
    {
        "kernels of a step": 200,
        "step, ms": 1.7,
        "bytes moved / needed": 1.15,
        "graphs": 40,
        "kernels of an encode": 350,
        "encoded picture, ms": 3.9,
        "nine rows, different pictures": 8,
        "nine rows, one picture": 10,
    }
)
"""Upper limits on an H100, as estimated. The rows: lower limits as multiples of the replaced deployment's
rates, at 30 concurrent requests. With different pictures 8 is CAPTION's, GROUNDING's and OCR's; the other six
have 10."""

NEARLY_ALL_ENCODING = ("CAPTION", "CAPTION_TO_PHRASE_GROUNDING", "OCR")
"""The tasks with the smaller aim."""


def least(task: str) -> float:
    """A task's aim with different pictures, as a multiple of the replaced deployment's rate."""
    return AIMS["nine rows, different pictures" if task in NEARLY_ALL_ENCODING else "nine rows, one picture"]
