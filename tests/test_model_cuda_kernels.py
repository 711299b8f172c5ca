"""The Triton kernels, without a GPU: they compute what their reference implementations define, compile for
the supported cards, and are imported nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="PyTorch's builds for CPUs have no triton")

import torch
from cuda_compile import compiling
from torch import Tensor

from florence.engine.device.cuda.encode_kernels import ENCODE_KERNELS
from florence.engine.device.cuda.kernels import STEP_KERNELS
from florence.model.kernels.cuda import attention, candidates, choose, low_rank, norms, quantize, windows

TESTS = Path(__file__).parent
VOCAB, PADDED, POSITIONS, WIDTH, HEADS, MOST = 51_289, 51_328, 1_025, 1_024, 16, 8


@pytest.mark.slow
def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    """Kernels equal their reference: `cuda_checks.py` has random ragged batches in each dtype,
    `cuda_checks_rows.py` single rows, `cuda_encode_checks.py` random pictures."""
    checks = [TESTS / f"cuda_{name}.py" for name in ("checks", "checks_rows", "encode_checks")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", *checks]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_nothing_else_needs_triton() -> None:
    """All other modules, and the reference implementations, are imported without triton."""
    script = """
import pkgutil, sys
sys.modules["triton"] = None
import florence
for module in pkgutil.walk_packages(florence.__path__, "florence."):
    name = module.name
    if name.startswith(("florence.model", "florence.engine")) and ".cuda." not in name:
        __import__(name)
import florence.engine.device.cuda.find_kernels
import florence.model.kernels.cuda.twins
kernels = {name for name in sys.modules if name.startswith("florence.model.kernels.cuda.")}
assert kernels == {"florence.model.kernels.cuda.twins"}, kernels
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def launch_all(dtype: torch.dtype, requests: int, beams: int) -> None:
    """Launch each kernel with the sizes of Florence-2-large."""
    rows, head_dim = requests * beams, WIDTH // HEADS

    def states(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape)

    def int64(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64)

    def int32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32)

    history = (requests, MOST, POSITIONS)
    queries, keys, values = states(rows, 3 * WIDTH).chunk(3, dim=-1)
    own = [states(rows, HEADS, POSITIONS - 1, head_dim) for _ in range(2)]
    cross = [states(requests, HEADS, 640, head_dim) for _ in range(2)]
    places = int64(rows), int64(rows), int32(requests), int32(requests, beams, POSITIONS)
    attention.self_attention(queries, keys, values, *own, *places)
    attention.cross_attention(states(rows, WIDTH), *cross, int64(requests), int32(requests), int32(requests))
    vectors = [states(WIDTH) for _ in range(3)]
    norms.add_norm(states(rows, WIDTH), vectors[0], states(rows, WIDTH), *vectors[1:], 1e-5)
    tables = states(VOCAB, WIDTH), states(POSITIONS + 2, WIDTH)
    norms.embed(int64(rows), int64(rows), *tables, *vectors[1:], 1.0, 1e-5, 2)
    numbers = [int64(requests) for _ in range(6)]
    logits = floats(rows, PADDED)[:, :VOCAB]
    counts = int32(requests)
    parts = candidates.scan(logits, numbers[0], counts, int64(*history), int64(*history), *numbers[1:4], 2)
    tokens, logprobs, _, faulty = candidates.merge(*parts, numbers[0], counts, *numbers[1:3], -1, 2)
    choose.choose(
        *(tokens, logprobs, faulty, numbers[0], counts, int64(rows)),
        *(numbers[1], numbers[2], numbers[3], floats(requests, MOST)),
        *(int64(*history), int64(*history), floats(*history), int32(*history)),
        *(numbers[4], floats(requests, MOST).double(), int64(requests, MOST), int64(requests, MOST)),
        *(int64(*history), floats(*history), int32(*history)),
        *(numbers[5], numbers[0], floats(requests).double(), 2),
    )
    chosen = int64(requests, beams), int64(requests, beams), int64(rows), int64(requests), int64(requests)
    kept = int64(6), floats(rows + 1, POSITIONS, 6)
    windows.window_sums(logits, floats(rows), *chosen, *kept, 50_269, 1_000)


HEADS_TO_COMPILE = [
    (16, torch.bfloat16),
    *(
        pytest.param(head_dim, dtype, marks=pytest.mark.slow)
        for head_dim in (16, 32, 128)
        for dtype in (torch.bfloat16, torch.float32)
        if (head_dim, dtype) != (16, torch.bfloat16)
    ),
]


@pytest.mark.parametrize(("head_dim", "dtype"), HEADS_TO_COMPILE, ids=str)
def test_heads_of_all_sizes_compile(head_dim: int, dtype: torch.dtype) -> None:
    """Attention compiles for all head sizes, as the check at start-up uses it; size 16, which only GPU
    tests have, may use local memory."""
    cpu = torch.device("cpu")
    with compiling(90) as used:
        for kernel in STEP_KERNELS[:2]:
            kernel.example(cpu, dtype, replace(kernel.small, head_dim=head_dim)).kernel()
        for kernel in ENCODE_KERNELS if head_dim == 16 else ():
            kernel.example(cpu, dtype, replace(kernel.small, dim=64, head_dim=head_dim, window=4)).kernel()
    assert {"self_attention_kernel", "cross_attention_kernel"} <= {each.name for each in used}
    if head_dim > 16 and dtype is torch.bfloat16:
        assert {each.name for each in used if each.local} == set()


@pytest.mark.parametrize("capability", [89, pytest.param(90, marks=pytest.mark.slow)])
def test_rows_in_fp8_compile_for_cards_that_have_it(capability: int) -> None:
    """Quantization to fp8 keeps a row in registers and uses the card's own conversion."""
    with compiling(capability) as used:
        for width in (1_024, 4_096):
            quantize.quantize_rows(torch.empty(64, width, dtype=torch.bfloat16))
    for each in used:
        assert (each.name, each.local) == ("quantize_rows_kernel", 0)
        assert "cvt.rn.satfinite.e4m3x2" in each.ptx
    assert len(used) == 2


@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("capability", [90, *(pytest.param(old, marks=pytest.mark.slow) for old in (80, 89))])
def test_low_rank_sums_compile_and_keep_all_in_registers(capability: int, rank: int) -> None:
    """Low-rank sums of the widest layers of Florence-2-large compile without local memory."""
    index = torch.empty(24, dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float32):
        states, total = torch.empty(24, 4_096, dtype=dtype), torch.empty(24, 3 * 1_024, dtype=dtype)
        down = torch.empty(3 * 8 * rank, 4_096, dtype=dtype)
        up = torch.empty(3 * 1_024, 8 * rank, dtype=dtype)
        with compiling(capability) as used:
            thin = low_rank.shrink(states, index, down, rank, 3)
            low_rank.expand(thin, index, up, total, 3)
        assert [(each.name, each.local) for each in used] == [("shrink_kernel", 0), ("expand_kernel", 0)]


ALL = [
    (90, torch.bfloat16, 16, 3),
    *(
        pytest.param(capability, dtype, *crowd, marks=pytest.mark.slow)
        for row, capability in enumerate((90, 89, 80))
        for column, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32))
        for crowd in [((16, 3), (2, 8), (16, 1))[(row + column) % 3]]  # each once with each card and dtype
        if (row, column) != (0, 0)
    ),
]


@pytest.mark.parametrize(("capability", "dtype", "requests", "beams"), ALL)
def test_kernels_compile_and_keep_all_in_registers(
    capability: int, dtype: torch.dtype, requests: int, beams: int
) -> None:
    """For A100, L4 and H100 the kernels compile without local memory, with shared memory for several
    programs at once, and use tensor cores for half-precision products."""
    with compiling(capability) as used:
        launch_all(dtype, requests, beams)
    names = {each.name for each in used}
    assert {"self_attention_kernel", "cross_attention_kernel", "scan_kernel", "choose_kernel"} <= names
    assert ("combine_kernel" in names) == (requests * HEADS < attention.PROGRAMS)
    for each in used:
        assert (each.name, each.local) == (each.name, 0)
        assert each.shared <= 100 * 1024 / 2, each.name
        if "attention" in each.name and dtype is not torch.float32:
            assert "mma" in each.ptx, each.name
