"""The bounds that options of a request share with a checkpoint's own settings. Knows no libraries."""

from __future__ import annotations

from typing import Final

MAX_BEAMS: Final = 8
MAX_TOKENS: Final = 4096
MAX_NGRAM: Final = 4096
MAX_TOP_K: Final = 1_000_000
MAX_SEED: Final = 2**53 - 1
"""The largest integer that every reader of JSON keeps exactly."""
LEAST_FACTOR: Final = 0.01
MAX_FACTOR: Final = 100.0
"""Of a temperature and of a repetition penalty."""
MAX_PENALTY: Final = 10.0
"""Of a length penalty, either sign: within it even 4096 ** length_penalty is a float32."""

WINDOWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Widths w, in locations to each side of a chosen one, at which the engine sums probabilities."""

Sums = tuple[float, ...]
"""Of one location: the probability within each of `WINDOWS` around it."""
