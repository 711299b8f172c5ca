"""Work of fixed shapes: few of them whatever comes, and the same results from recorded work."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florence.engine.device.graphs import Buckets, EagerCapturer, doubling, round_up


@given(first=st.integers(1, 64), last=st.integers(1, 5000))
def test_sizes_ascend_to_the_most_there_can_be_and_waste_less_than_half(first: int, last: int) -> None:
    sizes = doubling(first, last)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == last
    assert all(after <= 2 * before for before, after in pairwise(sizes))
    assert sizes[0] == min(first, last)


@given(st.sets(st.integers(1, 5000), min_size=1), st.data())
def test_a_size_becomes_one_that_holds_it_and_no_larger_one(sizes: set[int], data: st.DataObject) -> None:
    """One of the sizes stays itself, and none lies between a size and what it becomes."""
    ascending = sorted(sizes)
    size = data.draw(st.integers(1, ascending[-1]))
    rounded = round_up(size, ascending)
    assert rounded in sizes
    assert rounded >= size
    assert not sizes & set(range(size, rounded))
    assert round_up(rounded, ascending) == rounded


def test_buckets_hold_everything_that_the_caches_hold() -> None:
    """Large's sizes on a GPU: any request fits, and there are few shapes."""
    buckets = Buckets.of(
        slots=64,
        rows=192,
        beams=3,
        max_beams=8,
        length=1025,
        picture_tokens=577,
        encoder_room=1024,
        pictures=16,
    )
    assert (buckets.slots[-1], buckets.rows[-1], buckets.beams) == (64, 192, (1, 3, 8))
    assert (buckets.lengths[-1], buckets.encoder_lengths[-1]) == (1025, 1024)
    assert len(buckets.slots) <= 12
    assert len(buckets.lengths) <= 10
    assert min(buckets.encoder_lengths) == 577 + 16


def test_recorded_work_gives_what_the_buffers_hold_at_each_replay() -> None:
    buffer, dice = torch.zeros(3), random.Random(0)
    replay, results = EagerCapturer().capture(lambda: [buffer * 2])
    kept = None
    for _ in range(3):
        values = torch.tensor([dice.random() for _ in range(3)])
        buffer.copy_(values)
        replay()
        assert torch.equal(results[0], values * 2)
        assert kept is None or kept is results[0]  # the same tensor at each replay
        kept = results[0]


@pytest.mark.gpu
def test_a_cuda_graph_does_too() -> None:
    from florence.engine.device.graphs import CudaGraphCapturer

    buffer = torch.zeros(3, device="cuda")
    work = lambda: [buffer * 2]  # noqa: E731
    work()
    replay, (result,) = CudaGraphCapturer(torch.device("cuda")).capture(work)
    buffer.fill_(5.0)
    replay()
    assert result.tolist() == [10.0] * 3
