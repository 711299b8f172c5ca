"""Bounds for both a request's options and a checkpoint's own settings. Imports no libraries."""

from __future__ import annotations

from typing import Final

MAX_BEAMS: Final = 8
MAX_TOKENS: Final = 4096
MAX_NGRAM: Final = 4096
MAX_TOP_K: Final = 1_000_000
MAX_SEED: Final = 2**53 - 1
"""Largest seed: the largest integer that every JSON parser keeps exactly."""
MIN_FACTOR: Final = 0.01
MAX_FACTOR: Final = 100.0
"""Largest temperature and repetition penalty."""
MAX_PENALTY: Final = 10.0
"""Largest absolute length penalty: with it even 4096 ** length_penalty is a finite float32."""

WINDOWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Widths w, in locations to each side of a chosen one, at which the engine sums probabilities."""

Sums = tuple[float, ...]
"""The probability within each of `WINDOWS` around one location."""
