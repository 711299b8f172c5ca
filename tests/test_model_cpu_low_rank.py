"""The kernel for low-rank sums: exact to rounding, by each row's own slot, and independent of other rows."""

from __future__ import annotations

import random

import pytest
import torch
from rounding import ROUNDING, drawn
from torch import Tensor

from florence.model.kernels.cpu.low_rank import LowRankLayer, LowRankSums, RowBlocks
from florence.model.kernels.cpu.openmp import DTYPES, available

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="no kernels here")

SLOTS = 4
Runs = list[tuple[int, int, int]]
Factors = dict[int, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def made() -> dict[tuple[torch.dtype, int], LowRankSums]:
    """Kernels by dtype and lanes, each compiled once."""
    return {}


@pytest.fixture(params=[(dtype, lanes) for dtype in DTYPES for lanes in (16, 8)], ids=str)
def sums(made: dict[tuple[torch.dtype, int], LowRankSums], request: pytest.FixtureRequest) -> LowRankSums:
    """A kernel of one dtype and number of lanes."""
    dtype, lanes = request.param
    if request.param not in made:
        made[request.param] = LowRankSums(dtype, threads=2, lanes=lanes)
    return made[request.param]


def random_layer(
    sums: LowRankSums, dice: random.Random, inputs: int, outputs: int
) -> tuple[LowRankLayer, Factors]:
    """A layer, and the factors in some of its slots."""
    layer, factors = LowRankLayer(sums, SLOTS, inputs, outputs), Factors()
    for slot in dice.sample(range(1, SLOTS + 1), dice.randint(1, SLOTS)):
        rank = dice.choice([1, 2, 3, 4, 8, 17, 64, 300])
        down, up = drawn(sums.dtype, rank, inputs, seed=slot), drawn(sums.dtype, outputs, rank, seed=slot + 9)
        layer.put(slot, down, up)
        factors[slot] = down, up
    return layer, factors


def random_runs(dice: random.Random) -> tuple[Runs, int]:
    """Runs of rows, some without an adapter, and the number of all rows."""
    runs, rows = Runs(), 0
    for _ in range(dice.randint(1, 6)):
        slot, count = dice.randint(0, SLOTS), dice.choice([1, 2, 3, 5, 6, 9, 24, 25, 70])
        if slot:
            runs.append((slot, rows, count))
        rows += count
    return runs, rows


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (48, 33), (272, 64), (1040, 100), (32, 3000)])
def test_each_row_gets_the_sum_of_its_own_slot(
    sums: LowRankSums, inputs: int, outputs: int, wide: bool
) -> None:
    """A row gets the float64 sum of its slot, rounded once and added to its value; rows without factors
    stay. Runs are random, ranks lie below and above registers and chunks, one or several threads compute,
    and states and output may be views."""
    dice = random.Random(f"{inputs} {outputs} {wide} {sums.dtype}")
    dtype = torch.float32 if wide else sums.dtype
    for _ in range(3):
        layer, factors = random_layer(sums, dice, inputs, outputs)
        runs, rows = random_runs(dice)
        states = drawn(sums.dtype, rows, inputs + 16, seed=1)[:, :inputs]
        whole = drawn(dtype, rows, outputs + 40, seed=2)
        before, total = whole.clone(), whole[:, 8 : 8 + outputs]
        expected, size = total.double(), total.double().abs() + 1
        for slot, first, count in runs:
            if slot in factors:
                down, up = (each.double() for each in factors[slot])
                part = slice(first, first + count)
                expected[part] += states[part].double() @ down.T @ up.T
                size[part] += states[part].double().abs() @ down.abs().T @ up.abs().T
        layer.add(RowBlocks(sums, runs), states, total)
        limit = expected.abs() * ROUNDING[dtype] + size * 1e-6
        assert ((total.double() - expected).abs() <= limit).all()
        total.copy_(before[:, 8 : 8 + outputs])
        assert torch.equal(whole, before)  # nothing beside the output was written


@pytest.mark.parametrize("outputs", [48, 3000])
def test_a_row_does_not_depend_on_others(sums: LowRankSums, outputs: int) -> None:
    """A row's sum has the same bits alone and among any number of other rows."""
    dice = random.Random(outputs)
    layer, _ = random_layer(sums, dice, 272, outputs)
    own = drawn(sums.dtype, 1, 272)
    for slot in range(1, SLOTS + 1):
        alone = torch.zeros(1, outputs, dtype=sums.dtype)
        layer.add(RowBlocks(sums, [(slot, 0, 1)]), own, alone)
        for _ in range(8):
            runs, rows = random_runs(dice)
            count = dice.randint(1, 30)
            row = rows + dice.randrange(count)
            runs.append((slot, rows, count))
            states = drawn(sums.dtype, rows + count, 272, seed=row)
            states[row] = own
            total = torch.zeros(len(states), outputs, dtype=sums.dtype)
            layer.add(RowBlocks(sums, runs), states, total)
            assert torch.equal(total[row], alone[0])


def test_what_a_slot_had_is_gone(made: dict[tuple[torch.dtype, int], LowRankSums]) -> None:
    """New factors replace a slot's old ones, and a cleared slot adds nothing; the sizes of its layer are
    checked."""
    sums = made.setdefault((torch.float32, 8), LowRankSums(torch.float32, 2, lanes=8))
    layer = LowRankLayer(sums, 1, 32, 40)
    states, blocks = drawn(torch.float32, 3, 32), RowBlocks(sums, [(1, 0, 3)])
    for rank in (300, 2):
        down, up = drawn(torch.float32, rank, 32, seed=rank), drawn(torch.float32, 40, rank, seed=1)
        layer.put(1, down, up)
        total = torch.zeros(3, 40)
        layer.add(blocks, states, total)
        torch.testing.assert_close(total, states @ down.T @ up.T, rtol=1e-4, atol=1e-3)
    layer.clear(1)
    before = total.clone()
    layer.add(blocks, states, total)
    assert torch.equal(total, before)
    with pytest.raises(ValueError, match="a multiple of 16"):
        LowRankLayer(sums, 1, 40, 40)
