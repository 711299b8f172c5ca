"""Checks of the Triton kernels on a CPU, in triton's interpreter: `test_model_cuda_kernels.py` runs them in a
process of their own, since triton chooses the interpreter when it is imported."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from florence.model.kernels.cuda import attention, norms, twins

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities

DTYPES = {
    # Of results around 1 that are rounded once, and of softmax weights that are rounded before.
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7},
    torch.float16: {"rtol": 2**-10, "atol": 2**-10},
}
HEADS, HEAD_DIM, ROOM = 2, 16, 150
"""Room for more than two blocks of keys."""

SEEDS = range(3)


class Crowd(NamedTuple):
    """Requests of a step, each with its own beams, places and lengths; some are padding."""

    beams: Tensor
    rows: Tensor
    slots: Tensor
    positions: Tensor
    indirection: Tensor
    lengths: Tensor

    @property
    def present(self) -> Tensor:
        """Which rows are some beam's."""
        width = len(self.rows) // len(self.beams)
        return (torch.arange(width) < self.beams[:, None]).flatten()


def crowd(seed: int, width: int) -> Crowd:
    """Beams from none to `width`, whose pasts are spread over the rows of their request."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    counts = [width, 0, dice.randint(1, width)]
    dice.shuffle(counts)
    beams = torch.tensor(counts, dtype=torch.int32)
    places = torch.randperm(3 * width + 2)[: 3 * width]
    position = torch.tensor([dice.choice([0, 1, 63, 64, 65, 149]) for _ in counts])
    parents = (torch.rand(3, width, ROOM) * beams.clamp(min=1)[:, None, None]).long()
    rows = places.view(3, width)[torch.arange(3)[:, None, None], parents]
    return Crowd(
        beams,
        places,
        torch.randperm(5)[:3],
        position.repeat_interleave(width),
        rows.int(),
        torch.tensor([dice.choice([1, 63, 64, 65, ROOM]) for _ in counts], dtype=torch.int32),
    )


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """A cache with more room than is used; what no request has written is not a number."""
    cache = torch.full(shape, torch.nan, dtype=dtype)
    cache[:, :, : ROOM + 1] = numbers(*cache[:, :, : ROOM + 1].shape, dtype=dtype)
    return cache


@pytest.fixture(params=[1, 8], ids=["whole", "divided"])
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Whether one program reads all keys of a head, or several do."""
    monkeypatch.setattr(attention, "splits_for", lambda *_: request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8])
def test_self_attention_equals_its_twin(dtype: torch.dtype, width: int, splits: int) -> None:
    """And writes the step's keys and values, at its position and nowhere else."""
    step = crowd(width + splits, width)
    states = numbers(3 * width, 3 * HEADS * HEAD_DIM, dtype=dtype).chunk(3, dim=-1)
    caches = [poisoned(3 * width + 2, HEADS, ROOM + 9, HEAD_DIM, dtype=dtype) for _ in range(2)]
    twin = [cache.clone() for cache in caches]
    place = step.rows, step.positions, step.beams, step.indirection
    made = attention.self_attention(*states, *caches, *place)
    expected = twins.self_attention(*states, *twin, *place)
    torch.testing.assert_close(made[step.present], expected[step.present], **DTYPES[dtype])
    for cache, other in zip(caches, twin, strict=True):
        torch.testing.assert_close(cache, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8])
def test_cross_attention_equals_its_twin(dtype: torch.dtype, width: int, splits: int) -> None:
    """And reads no position after a request's length."""
    step = crowd(width + splits, width)
    queries = numbers(3 * width, HEADS * HEAD_DIM, dtype=dtype)
    caches = [numbers(5, HEADS, ROOM + 9, HEAD_DIM, dtype=dtype) for _ in range(2)]
    for slot, length in zip(step.slots.tolist(), step.lengths.tolist(), strict=True):
        for cache in caches:
            cache[slot, :, length:] = torch.nan
    arguments = queries, *caches, step.slots, step.lengths, step.beams
    made, expected = attention.cross_attention(*arguments), twins.cross_attention(*arguments)
    torch.testing.assert_close(made[step.present], expected[step.present], **DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, 64])
def test_norms_equal_their_twins(dtype: torch.dtype, width: int) -> None:
    """Of rows whose width is a power of two and of others."""
    torch.manual_seed(width)
    vectors = [numbers(width, dtype=dtype) for _ in range(3)]
    product, residual = numbers(5, width, dtype=dtype), numbers(5, width, dtype=dtype)
    arguments: tuple[Any, ...] = (product, vectors[0], residual, *vectors[1:], 1e-5)
    torch.testing.assert_close(norms.add_norm(*arguments), twins.add_norm(*arguments), **DTYPES[dtype])
    tokens, positions = torch.randint(0, 20, (5,)), torch.randint(0, 9, (5,))
    tables = numbers(20, width, dtype=dtype), numbers(11, width, dtype=dtype)
    arguments = (tokens, positions, *tables, *vectors[1:], 1.5, 1e-5, 2)
    torch.testing.assert_close(norms.embed(*arguments), twins.embed(*arguments), **DTYPES[dtype])
