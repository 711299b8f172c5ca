"""Checks of the Triton kernels that work row by row, in triton's interpreter: rows to fp8, and low-rank sums.
`test_model_cuda_kernels.py` runs them as it does `cuda_checks.py`."""

from __future__ import annotations

import pytest
import torch
from cuda_checks import DTYPES, numbers

from florence.model.kernels import fp8
from florence.model.kernels.cuda import low_rank, quantize, twins


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rank", "parts"), [(16, 1), (48, 1), (32, 3)])
def test_low_rank_sums_equal_their_twin(dtype: torch.dtype, rank: int, parts: int) -> None:
    """The low-rank kernels equal their references for rows with different adapters, in any order.

    Rows without an adapter stay unchanged; rows may be views with gaps; one or several layers are computed
    together; adapters that no row uses may hold NaN.
    """
    torch.manual_seed(rank)
    index = torch.tensor([3, 0, 1, 3, 0, 2, 1])
    down = numbers(parts * 4 * rank, 200, dtype=dtype)
    up = numbers(parts * 150, 4 * rank, dtype=dtype) / rank
    down.view(parts, 4 * rank, 200)[:, 3 * rank :], up[:, 3 * rank :] = (
        torch.nan,
        torch.nan,
    )  # unused
    states = numbers(7, 3 * 200, dtype=dtype)[:, 200:400] / 14
    made = numbers(7, (1 + parts) * 150, dtype=dtype)[:, 150:]
    expected, before = made.clone(), made.clone()
    given = states, index, down, rank, parts
    thin, exact = low_rank.shrink(*given), twins.shrink(*given)
    torch.testing.assert_close(thin[index > 0], exact[index > 0], rtol=1e-5, atol=1e-5)
    low_rank.expand(thin, index, up, made, parts)
    twins.expand(exact, index, up, expected, parts)
    torch.testing.assert_close(made, expected, **DTYPES[dtype])
    assert torch.equal(made[index == 0], before[index == 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_fp8_equal_their_definition(dtype: torch.dtype) -> None:
    """Rows in fp8 equal their definition bit for bit, except for the sign of zero.

    Rows have any magnitude, only zeros, one outlier, or gaps between them. A row with NaN has a NaN scale.
    """
    torch.manual_seed(0)
    rows = numbers(12, 100, dtype=torch.float32) * torch.logspace(-4, 4, 12)[:, None]
    rows[3], rows[4, 1:], rows[5, 7] = 0, rows[4, 1:] * 1e-3, torch.nan
    rows = rows.to(dtype)[:, 3:93]
    (made, scales), (expected, exact) = quantize.quantize_rows(rows), fp8.quantize_rows(rows)
    torch.testing.assert_close(scales, exact, rtol=0, atol=0, equal_nan=True)
    assert scales.isnan().flatten().tolist() == [row == 5 for row in range(12)]
    usual = ~scales.isnan().flatten()
    torch.testing.assert_close(made.float()[usual], expected.float()[usual], rtol=0, atol=0)
