"""The counts of one model: encodes, steps and graphs, on fake tensors, with as few counts as suffice.

Knows shapes; knows nothing about cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from random_models import SIZES, VOCAB

from florence.engine.device.capture.buckets import MIN_SLOTS, doubling
from florence.model.encoding import PLAIN
from ledger.counting import Ledger
from ledger.fakes import DTYPE, Encode, FakeEngine, Shape, fakes, mean_length
from ledger.graphs import count_graphs

POSITIONS = (1.0, 16.0, 64.0, 192.0)
"""Mean positions of beams for which steps are counted; times between them are interpolated."""

ENCODES = (1, 16)
"""Batches of pictures that are counted; times between them are interpolated."""


@dataclass(frozen=True)
class Counts:
    """The counts of one model: encodes by pictures, steps by requests and mean positions, and graphs captured
    before the engine is ready and after.

    `eager`: the tower of the largest encode by PyTorch's operations. Some are counted only if wanted.
    """

    shape: Shape
    encodes: dict[int, Encode]
    steps: dict[tuple[int, float], Ledger]
    eager: Ledger | None = None
    graphs: tuple[int, int] | None = None


@cache
def count(
    size: str,
    beams: int,
    wanted: tuple[tuple[int, float], ...],
    encodes: tuple[int, ...],
    crowds: int = 0,
    fp8: bool = False,
    adapters: int = 0,
    eager: bool = False,
) -> Counts:
    """Count steps of the `wanted` (requests, mean positions), encodes, the graphs of `crowds` random batches,
    and an `eager` tower. `fp8`, `adapters`: as in `Shape`."""
    slots = max(64, *(number for number, _ in wanted))
    shape = Shape(size, slots=slots, beams=beams, fp8=fp8, adapters=adapters)
    if fp8:  # only encodes use fp8
        plain = count(size, beams, wanted, encodes, crowds, False, adapters, eager)
        with fakes():
            return replace(plain, shape=shape, encodes=FakeEngine(shape).encodes(encodes))
    with fakes():
        engine = FakeEngine(shape)
        counted = engine.encodes(encodes)
        steps = dict(zip(wanted, engine.steps(wanted), strict=True))
        tower = engine.tower(max(encodes), PLAIN)[0] if eager else None
        graphs = count_graphs(shape, crowds) if crowds else None
    return Counts(shape, counted, steps, tower, graphs)


def needed_bytes(shape: Shape, requests: int, length: int) -> dict[str, float]:
    """The fewest bytes of a step: the decoder's weights once, each request's encoder keys and values once for
    all its beams, and each beam's past."""
    d_model, layers, _, ffn_dim, _ = SIZES[shape.size]
    weights = layers * (6 * d_model**2 + 2 * d_model * ffn_dim) + d_model * VOCAB
    position = 2 * layers * d_model * DTYPE.itemsize  # keys and values of all layers
    encoder_length = FakeEngine.length_of(shape)
    return {
        "weights": float(weights * DTYPE.itemsize),
        "cross": float(requests * encoder_length * position),
        "own": requests * shape.beams * mean_length(length) * position,
    }


def step_ends(slots: int) -> Sequence[tuple[int, int]]:
    """The fewest and the most requests of each captured shape of steps."""
    sizes = doubling(MIN_SLOTS, slots, halves=4)
    return list(zip((1, *(size + 1 for size in sizes)), sizes, strict=False))
