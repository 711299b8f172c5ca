"""The few shapes of steps and encodes that are captured as graphs, chosen so that every request fits one.

A bucket computes more than the request needs, and each costs time at the start and memory. So the shapes that
most requests need are closely spaced, and all other requests share a few large ones. One graph for each
bucket of sizes is the practice of vLLM and nano-vllm. Knows sizes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from florence.engine.device.beams.search_state import StepShape
from florence.types.bounds import MAX_BEAMS

MIN_SLOTS = 8
"""The smallest bucket of requests: fewer take a GPU as long, since launching a step's kernels takes the
time."""

ENCODE_HALVES = 8
"""From this many pictures on, there is also a bucket halfway between two powers of two."""

MIN_LENGTH = 64
"""Positions of the smallest bucket of sequence lengths."""

USUAL_LENGTH = 256
"""Sequences of up to this many positions have buckets of their own."""

USUAL_PROMPT = 48
"""Tokens of a usual prompt: the tasks' sentences have up to 14, those with a region 24 to 27, those with a
caller's sentence about 40."""

ALIGNMENT = 64
"""Encoder lengths are multiples of this: a GPU's attention reads whole tiles, and masks with unaligned rows
are its slowest and least tested case."""

_VOCABULARY = 2**16  # the order of its size: sampling sorts all scores of a row
COMMON_BEAMS = 3
"""Beams of Microsoft's checkpoints, a bucket beside one beam and the maximum."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """A shape of steps: the first `slots` and `rows` of the caches, and the sizes of the tensors."""

    slots: int
    rows: int
    shape: StepShape

    def covers(self, other: StepKey) -> bool:
        """Whether a step that needs the other shape can run in this one."""
        mine, its = self.shape, other.shape
        return (
            self.slots >= other.slots
            and self.rows >= other.rows
            and mine.beams >= its.beams
            and mine.length >= its.length
            and mine.greedy >= its.greedy
            and mine.encoder_length >= its.encoder_length
            and mine.sampled >= its.sampled
            and mine.penalized >= its.penalized
        )

    @property
    def cost(self) -> float:
        """A step's relative cost: positions of keys and values that it reads, an eighth for each attention
        score, and each row's logits for sampling and for penalties."""
        shape = self.shape
        own = self.rows * shape.length * (1 + shape.beams / 8)
        scores = self.rows * (shape.greedy + _VOCABULARY * (shape.sampled + shape.penalized))
        return self.slots * shape.encoder_length + own + scores


@dataclass(frozen=True, slots=True)
class Buckets:
    """All shapes for an engine's sizes.

    `steps`: the cheapest first. `pictures`: pictures of an encode, ascending. `prompts`: tokens of the
    longest prompt of an encode, ascending.
    """

    steps: tuple[StepKey, ...]
    pictures: tuple[int, ...]
    prompts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        *,
        slots: int,
        rows: int,
        beams: int,
        room: int,
        picture_tokens: int,
        encoder_room: int,
        pictures: int,
        grouped: bool = False,
    ) -> Buckets:
        """For caches of `slots` and `rows` with `room` positions, requests that mostly have `beams` beams,
        and encodes of up to `pictures` pictures of `picture_tokens` tokens; `encoder_room`: positions for a
        picture and its prompt. `grouped`: steps read lengths from memory (`AttentionBackend`), so that shapes
        differ in requests and beams only."""
        lengths = (*(length for length in doubling(MIN_LENGTH, room) if length < room), room + 1)
        encoder_lengths = _encoder_lengths(picture_tokens, encoder_room)
        shapes = {
            *_usual(beams, lengths, encoder_lengths[0]),
            *_rare(beams, lengths, encoder_lengths[-1]),
            StepShape(MAX_BEAMS, lengths[-1], True, encoder_lengths[-1], sampled=True, penalized=True),
        }
        keys = {
            StepKey(count, min(rows, count * shape.beams), shape)
            for shape in shapes
            for count in doubling(MIN_SLOTS, slots, halves=4)
        }
        if grouped:
            keys = set(_grouped(slots, beams, room, encoder_lengths[-1]))
        return cls(
            steps=tuple(sorted(keys, key=lambda key: key.cost)),
            pictures=doubling(1, pictures, halves=ENCODE_HALVES),
            prompts=tuple(length - picture_tokens for length in encoder_lengths),
        )

    def step(self, needed: StepKey) -> StepKey:
        """The cheapest shape that covers `needed`. Raises `ValueError` where there is none."""
        for key in self.steps:
            if key.covers(needed):
                return key
        raise ValueError(f"{needed} fits no shape")


def _usual(beams: int, lengths: Sequence[int], encoder_length: int) -> Iterator[StepShape]:
    """Short answers to usual prompts, with and without one-beam requests in the batch."""
    searches = {(1, True), (beams, beams == 1), (beams, True), (COMMON_BEAMS, True), (MAX_BEAMS, True)}
    for length in lengths:
        if length <= USUAL_LENGTH or length == lengths[0]:
            for count, greedy in searches:
                yield StepShape(count, length, greedy, encoder_length)


def _rare(beams: int, lengths: Sequence[int], encoder_length: int) -> Iterator[StepShape]:
    """All others: any number of beams, any prompt, any length."""
    for length in lengths:
        for count in {max(beams, COMMON_BEAMS), MAX_BEAMS}:
            yield StepShape(count, length, True, encoder_length)


def _grouped(slots: int, beams: int, room: int, encoder_length: int) -> Iterator[StepKey]:
    """Any length; sampling and penalties with the usual numbers of beams, and in the largest shape."""
    plain = partial(StepShape, length=room + 1, greedy=True, encoder_length=encoder_length)
    special = partial(plain, sampled=True, penalized=True)
    for count in doubling(MIN_SLOTS, slots, halves=4):
        for width in (1, COMMON_BEAMS, beams, MAX_BEAMS):
            yield StepKey(count, count * width, plain(width))
        usual = max(beams, COMMON_BEAMS)
        yield StepKey(count, count * usual, special(usual))
    yield StepKey(slots, slots * MAX_BEAMS, special(MAX_BEAMS))


def _encoder_lengths(picture_tokens: int, room: int) -> tuple[int, ...]:
    """Positions for a picture and a usual prompt, and the maximum."""
    usual = aligned(picture_tokens + USUAL_PROMPT)
    return (usual, room) if usual < room else (room,)


def aligned(length: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def doubling(first: int, last: int, *, halves: int | None = None) -> tuple[int, ...]:
    """`first`, twice that, and so on, and `last` at the end; from `halves` times `first` on, also a size
    halfway between two."""
    sizes, size = set(), first
    while size < last:
        sizes |= {size, size * 3 // 2} if halves and size >= halves * first else {size}
        size *= 2
    return (*sorted(size for size in sizes if size < last), last)


def round_down(size: int, sizes: Sequence[int]) -> int:
    """The largest of the ascending `sizes` that is at most `size`; 0 where none is."""
    return max((candidate for candidate in sizes if candidate <= size), default=0)


def round_up(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that is at least `size`. Raises `ValueError` where none is."""
    for candidate in sizes:
        if candidate >= size:
            return candidate
    raise ValueError(f"{size} fits none of the sizes {list(sizes)}")
