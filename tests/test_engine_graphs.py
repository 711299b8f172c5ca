"""Any request fits one of a few shapes, and captured work gives the same results as plain work."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florence.engine.device.graphs import Buckets, EagerCapturer, doubling, round_up


@given(first=st.integers(1, 64), last=st.integers(1, 5000))
def test_sizes_ascend_to_the_largest_and_waste_less_than_half(first: int, last: int) -> None:
    """Each is at most twice the one before."""
    sizes = doubling(first, last)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == last
    assert all(after <= 2 * before for before, after in pairwise(sizes))
    assert sizes[0] == min(first, last)


@given(st.sets(st.integers(1, 5000), min_size=1), st.data())
def test_a_size_is_rounded_up_to_the_next_bucket(sizes: set[int], data: st.DataObject) -> None:
    """A bucket's own size stays as it is, and no bucket is between a size and its bucket."""
    ascending = sorted(sizes)
    size = data.draw(st.integers(1, ascending[-1]))
    rounded = round_up(size, ascending)
    assert rounded in sizes
    assert rounded >= size
    assert not sizes & set(range(size, rounded))
    assert round_up(rounded, ascending) == rounded


def test_buckets_cover_the_caches() -> None:
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


def test_captured_work_reads_its_buffers_at_each_replay() -> None:
    """And writes its results to the same tensors."""
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
def test_a_cuda_graph_reads_its_buffers_at_each_replay() -> None:
    """As the eager capturer does."""
    from florence.engine.device.graphs import CudaGraphCapturer

    buffer = torch.zeros(3, device="cuda")
    work = lambda: [buffer * 2]  # noqa: E731
    work()
    replay, (result,) = CudaGraphCapturer(torch.device("cuda")).capture(work)
    buffer.fill_(5.0)
    replay()
    assert result.tolist() == [10.0] * 3
