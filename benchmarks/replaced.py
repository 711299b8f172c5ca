"""Measured rates of the Triton ensemble that this service replaces: one RTX 4090, float16, three beams, one
picture for all requests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REPLACED: Mapping[int, Mapping[str, float]] = MappingProxyType(
    {
        30: {
            "CAPTION": 25.7,
            "DETAILED_CAPTION": 14.2,
            "MORE_DETAILED_CAPTION": 17.6,
            "CAPTION_TO_PHRASE_GROUNDING": 28.7,
            "OD": 5.0,
            "DENSE_REGION_CAPTION": 7.5,
            "REGION_PROPOSAL": 6.3,
            "OCR": 28.2,
            "OCR_WITH_REGION": 21.0,
        },
        36: {
            "CAPTION": 26.6,
            "DETAILED_CAPTION": 14.5,
            "MORE_DETAILED_CAPTION": 19.6,
            "CAPTION_TO_PHRASE_GROUNDING": 29.7,
            "OD": 5.8,
            "DENSE_REGION_CAPTION": 7.3,
            "REGION_PROPOSAL": 6.3,
            "OCR": 29.4,
            "OCR_WITH_REGION": 21.6,
        },
    }
)
"""Concurrent requests -> task -> answers per second."""
