"""The bounds that options of a request share with a checkpoint's own settings. Knows no libraries."""

from __future__ import annotations

from typing import Final

MAX_BEAMS: Final = 8
MAX_TOKENS: Final = 4096
MAX_NGRAM: Final = 4096
MAX_PENALTY: Final = 10.0
"""Of a length penalty, either sign: within it even 4096 ** length_penalty is a float32."""
