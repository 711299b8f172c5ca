# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Window sums: how much probability lies near each chosen token, among tokens with an order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from florence.model.kernels.cuda.operations import operation, power_of_2


@triton.jit
def window_sums_kernel(
    logits, normalizers, tokens, parent_rows, rows, slots, generated, widths, windows,
    row_stride, window_row_stride, first, count,
    BEAMS: tl.constexpr, WIDTHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    token = tl.load(tokens + place)
    if (token < first) | (token >= first + count):
        return
    parent = tl.load(parent_rows + place)
    index = tl.arange(0, BLOCK)
    scores = tl.load(logits + parent * row_stride + first + index, mask=index < count, other=-float("inf"))
    probabilities = tl.exp(scores - tl.load(normalizers + parent))
    position = tl.load(generated + tl.load(slots + place // BEAMS))  # of the chosen token
    kept = windows + tl.load(rows + place) * window_row_stride + position * WIDTHS
    for width in range(WIDTHS):
        near = tl.abs(first + index - token) <= tl.load(widths + width)
        tl.store(kept + width, tl.sum(tl.where(near, probabilities, 0.0), 0))


@operation(mutates=("windows",))
def window_sums(
    logits: Tensor,
    normalizers: Tensor,
    tokens: Tensor,
    parent_rows: Tensor,
    rows: Tensor,
    slots: Tensor,
    generated: Tensor,
    widths: Tensor,
    windows: Tensor,
    first: int,
    count: int,
) -> None:
    """Write the window sums of the tokens that `choose` has just chosen; see `twins.window_sums`."""
    beams = len(rows) // len(slots)
    window_sums_kernel[(len(rows),)](
        logits, normalizers, tokens, parent_rows, rows, slots, generated, widths, windows,
        logits.stride(0), windows.stride(0), first, count,
        BEAMS=beams, WIDTHS=len(widths), BLOCK=power_of_2(count),
    )  # fmt: skip
