"""The names of the precisions that a model can be loaded in. Imports no libraries."""

from __future__ import annotations

from typing import Final, Literal, get_args

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]

PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)
