"""The CPU kernel computes PyTorch's attention, request by request."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available

pytestmark = pytest.mark.skipif(
    not available(torch.float32), reason="the kernel needs numba, Linux and an x86-64 processor with AVX2"
)

HEADS = 3
# For a result rounded to the dtype once: half a unit in the last place, plus float32's own error of
# scores up to about 20.
TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2**-11, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-5},
}


KINDS = [  # the model's head_dim, and one that fills no register
    *((dtype, 64) for dtype in TOLERANCES),
    *((dtype, 12) for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[torch.dtype, int], CpuAttention]:
    """The kernels by dtype and head_dim, compiled once."""
    return {(dtype, head_dim): CpuAttention(dtype, head_dim, threads=3) for dtype, head_dim in KINDS}


@dataclass(frozen=True)
class Case:
    """Sizes and a seed, from which the numbers follow."""

    dtype: torch.dtype
    head_dim: int
    room: int
    beams: list[int]  # of each request
    lengths: list[int]  # of each request
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any dtype, sizes, beams and lengths."""
    requests, room = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    return Case(
        *draw(st.sampled_from(KINDS)),
        room,
        draw(st.lists(st.integers(1, 8), min_size=requests, max_size=requests)),
        draw(st.lists(st.integers(1, room), min_size=requests, max_size=requests)),
        draw(st.integers(0, 2**31)),
    )


def int32(numbers: list[int]) -> Tensor:
    """The numbers as an int32 tensor."""
    return torch.tensor(numbers, dtype=torch.int32)


def starts_of(beams: list[int]) -> Tensor:
    """The first row of each request, and the number of all rows."""
    return F.pad(int32(beams).cumsum(0), (1, 0)).int()


def pool(slots: int, room: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """[slots, HEADS, room, head_dim]: a view into a larger pool in another order, as an engine's may be."""
    whole = torch.randn(room + 2, 2, slots, HEADS, head_dim + 2).mul(3).to(dtype)
    return whole[1:-1, 1, :, :, :head_dim].permute(1, 2, 0, 3)


def expected(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention in float64 of one request's rows [rows, HEADS * head_dim] over [HEADS, length, head_dim]."""
    split = queries.double().unflatten(1, (HEADS, -1)).transpose(0, 1)
    mixed = F.scaled_dot_product_attention(split[None], keys[None].double(), values[None].double())[0]
    return mixed.transpose(0, 1).flatten(1)


def assert_rounded(actual: Tensor, exact: Tensor) -> None:
    """Check that the result is the exact one within rounding."""
    torch.testing.assert_close(actual.double(), exact, **TOLERANCES[actual.dtype])


@settings(max_examples=60)
@given(case=cases())
def test_cross_attention_equals_attention_request_by_request(
    kernels: dict[tuple[torch.dtype, int], CpuAttention], case: Case
) -> None:
    """Cross attention is exact for any beams, lengths and slots, in any layout with a contiguous last
    dimension."""
    torch.manual_seed(case.seed)
    requests, rows = len(case.beams), sum(case.beams)
    keys, values = (pool(requests + 2, case.room, case.head_dim, case.dtype) for _ in range(2))
    fused = torch.randn(rows, 2 * HEADS * case.head_dim).to(case.dtype)
    queries = fused[:, HEADS * case.head_dim :]
    slots, starts = torch.randperm(requests + 2)[:requests].int(), starts_of(case.beams)
    kernel = kernels[case.dtype, case.head_dim]
    result = kernel.cross_attention(queries, keys, values, slots, starts, int32(case.lengths))
    assert (result.dtype, result.shape) == (queries.dtype, queries.shape)
    for request, (slot, length) in enumerate(zip(slots.tolist(), case.lengths, strict=True)):
        own = slice(*starts[request : request + 2].tolist())
        exact = expected(queries[own], keys[slot, :, :length], values[slot, :, :length])
        assert_rounded(result[own], exact)


@settings(max_examples=60)
@given(case=cases())
def test_self_attention_follows_the_beam_indirection(
    kernels: dict[tuple[torch.dtype, int], CpuAttention], case: Case
) -> None:
    """Self-attention is exact when each position of a row's past is in another row of the cache."""
    torch.manual_seed(case.seed)
    rows = len(case.lengths)
    keys, values = (pool(rows + 1, case.room, case.head_dim, case.dtype) for _ in range(2))
    queries = torch.randn(rows, HEADS * case.head_dim).to(case.dtype)
    sources = torch.randint(rows + 1, (rows, case.room + 3), dtype=torch.int32)
    kernel = kernels[case.dtype, case.head_dim]
    result = kernel.self_attention(queries, keys, values, sources, int32(case.lengths))
    for row, length in enumerate(case.lengths):
        positions = torch.arange(length)
        past = [part[sources[row, :length].long(), :, positions].transpose(0, 1) for part in (keys, values)]
        assert_rounded(result[row : row + 1], expected(queries[row : row + 1], *past))


def test_many_rows_of_one_request(kernels: dict[tuple[torch.dtype, int], CpuAttention]) -> None:
    """Cross attention is exact for more rows than share a tile, and more keys than a picture has."""
    keys, values = torch.randn(2, 1, HEADS, 1500, 64)
    queries = torch.randn(21, HEADS * 64)
    result = kernels[torch.float32, 64].cross_attention(
        queries, keys, values, int32([0]), int32([0, 21]), int32([1500])
    )
    assert_rounded(result, expected(queries, keys[0], values[0]))


@pytest.mark.parametrize("scale", [1e-30, 30.0, 300.0])
def test_scores_of_any_size(kernels: dict[tuple[torch.dtype, int], CpuAttention], scale: float) -> None:
    """Very small and very large scores give a result without underflow or overflow."""
    keys = torch.randn(1, HEADS, 40, 64)
    for sign in (-1, 1):
        queries = sign * scale * keys[0, :, 7].reshape(1, -1)
        result = kernels[torch.float32, 64].cross_attention(
            queries, keys, keys, int32([0]), int32([0, 1]), int32([40])
        )
        exact = expected(queries, keys[0], keys[0])
        torch.testing.assert_close(result.double(), exact, rtol=1e-3, atol=1e-4 if scale > 1 else 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_one_request_affects_no_other(
    kernels: dict[tuple[torch.dtype, int], CpuAttention], bad: float
) -> None:
    """NaN or infinity in one request's keys or values, or after the keys in use, affects no other request."""
    for dtype in TOLERANCES:
        keys, values = torch.randn(2, 3, HEADS, 40, 64).to(dtype)
        queries = torch.randn(6, HEADS * 64).to(dtype)
        queries[2, 5] = 1  # so that an infinite key has a score of plus infinity
        arguments = int32([0, 1, 2]), int32([0, 2, 4, 6]), int32([33, 37, 5])
        whole = kernels[dtype, 64].cross_attention(queries, keys, values, *arguments)
        keys[1, :, 3, 5] = bad
        values[0, :, 33:] = bad
        keys[2, :, 5:] = bad
        broken = kernels[dtype, 64].cross_attention(queries, keys, values, *arguments)
        assert torch.equal(broken[:2], whole[:2])
        assert torch.equal(broken[4:], whole[4:])
        assert broken[2:4].isnan().any()
        values[1, :, 4, 5] = float("nan")
        assert kernels[dtype, 64].cross_attention(queries, keys, values, *arguments)[2:4].isnan().any()


def test_neighbours_and_threads_change_no_bit(
    kernels: dict[tuple[torch.dtype, int], CpuAttention],
) -> None:
    """A request's result is the same alone, among others, and with another number of threads."""
    keys, values = torch.randn(2, 9, HEADS, 60, 64).bfloat16()
    queries = torch.randn(27, HEADS * 64).bfloat16()
    lengths = torch.randint(1, 61, (9,), dtype=torch.int32)
    many = kernels[torch.bfloat16, 64]
    together = many.cross_attention(queries, keys, values, torch.arange(9).int(), starts_of([3] * 9), lengths)
    one = CpuAttention(torch.bfloat16, 64, threads=1)
    for slot in range(9):
        rows = queries[3 * slot : 3 * slot + 3]
        alone = one.cross_attention(
            rows, keys, values, int32([slot]), int32([0, 3]), lengths[slot : slot + 1]
        )
        assert torch.equal(alone, together[3 * slot : 3 * slot + 3])


def test_calls_from_several_threads_are_independent(
    kernels: dict[tuple[torch.dtype, int], CpuAttention],
) -> None:
    """Engines of several devices may share a kernel: concurrent calls give the same results."""
    kernel = kernels[torch.float32, 64]
    keys, values = torch.randn(2, 4, HEADS, 200, 64)
    arguments = keys, values, int32([3, 1, 2, 0]), int32([0, 2, 4, 6, 8]), int32([200, 150, 90, 1])
    inputs = [torch.randn(8, HEADS * 64) for _ in range(4)]
    wanted = [kernel.cross_attention(queries, *arguments) for queries in inputs]
    found: list[list[Tensor]] = [[] for _ in inputs]

    def ask(index: int) -> None:
        found[index] = [kernel.cross_attention(inputs[index], *arguments) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, exact in zip(found, wanted, strict=True):
        assert len(results) == 50
        assert all(torch.equal(result, exact) for result in results)


@pytest.mark.parametrize(
    ("slots", "starts", "lengths"),
    [
        ([2], [0, 2], [9]),
        ([-1], [0, 2], [9]),
        ([0], [0, 3], [9]),
        ([0], [-1, 2], [9]),
        ([0], [2, 0], [9]),
        ([0], [0, 2], [10]),
        ([0], [0, 2], [0]),
    ],
)
def test_indices_out_of_range_are_refused(
    kernels: dict[tuple[torch.dtype, int], CpuAttention],
    slots: list[int],
    starts: list[int],
    lengths: list[int],
) -> None:
    """A wrong slot, row or length is an error and reads no other memory."""
    keys, values = torch.randn(2, 2, HEADS, 9, 64)
    kernel, queries = kernels[torch.float32, 64], torch.randn(2, HEADS * 64)
    with pytest.raises(ValueError, match="out of range of the tensors"):
        kernel.cross_attention(queries, keys, values, int32(slots), int32(starts), int32(lengths))
    sources = torch.zeros(2, 9, dtype=torch.int32)
    sources[1, 4] = 2
    with pytest.raises(ValueError, match="out of range of the tensors"):
        kernel.self_attention(queries, keys, values, sources, int32([9, 9]))


def test_tensors_that_do_not_fit_together_are_refused(
    kernels: dict[tuple[torch.dtype, int], CpuAttention],
) -> None:
    """Tensors of wrong shape or dtype are refused by name before anything is read."""
    kernel, keys, queries = kernels[torch.float32, 64], torch.randn(2, HEADS, 9, 64), torch.randn(2, 192)
    slots, starts, lengths = int32([0]), int32([0, 2]), int32([9])
    wrong: list[tuple[str, tuple[Tensor, ...]]] = [
        ("queries must be", (queries[:, :64], keys, keys, slots, starts, lengths)),
        ("keys and values", (queries, keys, keys[:, :, :5], slots, starts, lengths)),
        ("keys and values", (queries, keys[..., :32], keys[..., :32], slots, starts, lengths)),
        ("must be torch", (queries.half(), keys, keys, slots, starts, lengths)),
        ("must be torch", (queries, keys, keys.transpose(2, 3).contiguous().mT, slots, starts, lengths)),
        ("must be int32", (queries, keys, keys, slots.long(), starts, lengths)),
        ("starts \\[requests", (queries, keys, keys, slots, starts[:1], lengths)),
        ("contiguous", (queries, keys, keys, slots, int32([0, 0, 2, 2])[::2], lengths)),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            kernel.cross_attention(*arguments)
    with pytest.raises(ValueError, match="sources must be"):
        kernel.self_attention(queries, keys, keys, int32([0, 0]), int32([9, 9]))
    with pytest.raises(ValueError, match="must be contiguous"):
        kernel.self_attention(queries, keys, keys, torch.zeros(9, 2, dtype=torch.int32).T, int32([9, 9]))


def test_dtypes_and_sizes_without_a_kernel_are_refused() -> None:
    """The error names a dtype or size that has no kernel."""
    assert not available(torch.float64)
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64"):
        CpuAttention(torch.float64, 64, None)
    with pytest.raises(ValueError, match="must be even"):
        CpuAttention(torch.float32, 7, None)


@pytest.mark.slow
def test_nothing_is_compiled_or_imported_before_a_kernel_is_made() -> None:
    """numba is not imported until a kernel is made."""
    program = (
        "import sys, torch; from florence.model.kernels.cpu import openmp; openmp.available(torch.float32);"
        "sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=600).returncode == 0
