"""Any request fits one of a few shapes, and captured work gives the results of plain work."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from florence.engine.device.beams.search_state import StepShape
from florence.engine.device.capture.buckets import Buckets, StepKey, doubling, round_up
from florence.engine.device.capture.graphs import EagerCapturer


@given(st.integers(1, 64), st.integers(1, 5000), st.sampled_from([None, 4, 8]))
def test_sizes_ascend_to_the_largest_and_waste_less_than_half(
    first: int, last: int, halves: int | None
) -> None:
    """Sizes ascend to the largest, and each is at most twice the one before."""
    sizes = doubling(first, last, halves=halves)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == last
    assert all(after <= 2 * before for before, after in pairwise(sizes))
    assert sizes[0] == min(first, last)


@given(st.sets(st.integers(1, 5000), min_size=1), st.data())
def test_a_size_is_rounded_up_to_the_next_bucket(sizes: set[int], data: st.DataObject) -> None:
    """A size is rounded up to the next bucket, and a bucket's own size is unchanged."""
    ascending = sorted(sizes)
    size = data.draw(st.integers(1, ascending[-1]))
    rounded = round_up(size, ascending)
    assert rounded in sizes
    assert rounded >= size
    assert not sizes & set(range(size, rounded))
    assert round_up(rounded, ascending) == rounded


LARGE: dict[str, int] = {
    "slots": 64,
    "rows": 192,
    "beams": 3,
    "room": 1024,
    "picture_tokens": 577,
    "encoder_room": 1024,
    "pictures": 16,
}
"""The sizes of Florence-2-large on a GPU."""


def test_few_shapes_hold_all_requests_to_large() -> None:
    """At most 136 graphs hold all requests to Florence-2-large.

    Encoder lengths are multiples of 64, and a usual prompt reads no more than it needs.
    """
    buckets = Buckets.of(**LARGE)
    graphs = len(buckets.steps) + len(buckets.pictures) * (1 + len(buckets.prompts))
    assert graphs <= 136
    assert {key.shape.encoder_length for key in buckets.steps} == {640, 1024}
    assert buckets.prompts == (63, 447)
    assert buckets.pictures == (1, 2, 4, 8, 12, 16)
    usual = buckets.step(StepKey(30, 90, StepShape(3, 100, False, 577 + 40)))
    assert usual == StepKey(32, 96, StepShape(3, 128, False, 640))


@given(
    st.integers(1, 70),
    st.integers(1, 8),
    st.integers(4, 1024),
    st.integers(1, 600),
    st.integers(1, 500),
    st.data(),
)
def test_any_step_fits_a_shape_and_none_that_costs_less(
    slots: int, beams: int, room: int, picture_tokens: int, prompt: int, data: st.DataObject
) -> None:
    """Any step fits a shape within the caches, and no cheaper shape covers it."""
    rows, encoder_room = max(8, slots * beams), picture_tokens + prompt
    buckets = Buckets.of(
        slots=slots,
        rows=rows,
        beams=beams,
        room=room,
        picture_tokens=picture_tokens,
        encoder_room=encoder_room,
        pictures=4,
    )
    draw = data.draw
    needed = StepKey(
        draw(st.integers(1, slots)),
        draw(st.integers(1, rows)),
        StepShape(
            draw(st.integers(1, 8)),
            draw(st.integers(2, room + 1)),
            draw(st.booleans()),
            draw(st.integers(1, encoder_room)),
        ),
    )
    key = buckets.step(needed)
    assert key.covers(needed)
    assert key.slots <= slots
    assert key.rows <= rows
    assert key.shape.encoder_length <= encoder_room
    assert not [other for other in buckets.steps if other.cost < key.cost and other.covers(needed)]
    assert buckets.prompts[-1] == prompt
    assert all(length % 64 == 0 or length == encoder_room for length in encoder_lengths(buckets))


def encoder_lengths(buckets: Buckets) -> set[int]:
    """The encoder lengths of the shapes."""
    return {key.shape.encoder_length for key in buckets.steps}


def test_captured_work_reads_its_buffers_at_each_replay() -> None:
    """Captured work reads its buffers at each replay and writes its results to the same tensors."""
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
