"""All figures of one card and one model: counts of a step and an encode, reckoned times, the nine tasks.

Counts come from `fakes.py`, costs from `costs.py`; this puts them together and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from typing import Any

from closed_loop import TASKS
from random_models import SIZES, VOCAB
from replaced import REPLACED

from florence.engine.config import EngineConfig
from florence.engine.device.buckets import MIN_SLOTS, doubling
from ledger.costs import CARDS, EAGER_LAUNCH_S, HOST_COPY, SMALL_KERNEL_S, TIMM_TOWER, Card, whole_peaks
from ledger.counting import Ledger
from ledger.fakes import DTYPE, Encode, FakeEngine, Shape, fakes, mean_length
from ledger.graphs import count_graphs
from ledger.rows import EXTRA_STEPS, closed_loop

CONCURRENCIES = (30, 36, 64)
POSITIONS = (1.0, 16.0, 64.0, 192.0)
"""Mean positions of beams for which steps are counted; the time of others lies between."""

ENCODES = (1, 16)
"""Batches of pictures that are counted; the time of others lies between."""


@dataclass(frozen=True)
class Counts:
    """What was counted for one model: encodes by pictures, steps by requests and mean positions, graphs
    captured before the engine is ready and after. `eager`: the tower of the most pictures, by PyTorch's
    operations."""

    shape: Shape
    encodes: dict[int, Encode]
    steps: dict[tuple[int, float], Ledger]
    eager: Ledger
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
) -> Counts:
    """Count steps of the `wanted` (requests, mean positions), encodes, and the graphs of so many random
    crowds. `fp8`, `adapters`: as `Shape` has them."""
    slots = max(64, *(number for number, _ in wanted))
    shape = Shape(size, slots=slots, beams=beams, fp8=fp8, adapters=adapters)
    with fakes():
        engine = FakeEngine(shape)
        counted = {pictures: engine.encode(pictures) for pictures in encodes}
        steps = dict(zip(wanted, engine.steps(wanted), strict=True))
        eager = engine.eager_tower(max(encodes))
        graphs = count_graphs(shape, crowds) if crowds else None
    return Counts(shape, counted, steps, eager, graphs)


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


@dataclass(frozen=True)
class Reckoner:
    """Reckoned times of counted work on a card. `encode_stream`: whether encodes run beside steps."""

    card: Card
    counts: Counts
    encode_stream: bool = False

    def step_s(self, requests: int, positions: float) -> float:
        """Of a step of so many requests, whose beams have so many positions in the mean: on a line between
        the steps that were counted in the same captured shape."""
        low, high = next(ends for ends in step_ends(self.counts.shape.slots) if requests <= ends[1])
        few, many = (self._by_positions(number, positions) for number in (low, high))
        return on_line(requests, (low, high), (few, many))

    def _by_positions(self, requests: int, positions: float) -> float:
        above = next((each for each in POSITIONS[1:-1] if positions <= each), POSITIONS[-1])
        ends = POSITIONS[POSITIONS.index(above) - 1], above
        low, high = (self._steps_s[requests, each] for each in ends)
        return on_line(positions, ends, (low, high))

    @cached_property
    def _steps_s(self) -> dict[tuple[int, float], float]:
        return {counted: ledger.seconds(self.card) for counted, ledger in self.counts.steps.items()}

    def encode_s(self, requests: int, *, new_pictures: bool = True) -> tuple[float, float]:
        """Of an encode of so many requests, the device's and the host's; their pictures are known where none
        are new. Between two sizes that were counted, a share of both."""
        (low, first), *_, (high, last) = sorted(self.counts.encodes.items())
        device, host = (
            on_line(requests, (low, high), (part(first, new_pictures), part(last, new_pictures)))
            for part in (self.device_s, self.host_s)
        )
        return device, host

    def device_s(self, encode: Encode, new_pictures: bool = True) -> float:
        """Of the graphs of an encode, and the kernels between them."""
        graphs = encode.graphs if new_pictures else encode.graphs[1:]
        return sum(graph.seconds(self.card) for graph in graphs) + encode.between * SMALL_KERNEL_S

    def host_s(self, encode: Encode, new_pictures: bool = True) -> float:
        """Of one encode: launches between graphs, and bytes that are sent. The device does meanwhile what it
        was sent before: copies have a stream of their own."""
        sent = encode.uploaded / HOST_COPY if new_pictures else 0.0
        return encode.between * EAGER_LAUNCH_S + sent

    def rows(self, concurrency: int, *, new_pictures: bool) -> dict[str, dict[str, float]]:
        """Rate and latencies of the nine tasks."""
        config = EngineConfig.for_device("cuda", encode_stream=self.encode_stream)
        encode_s = partial(self.encode_s, new_pictures=new_pictures)
        return {
            task: asdict(closed_loop(concurrency, tokens, encode_s, self.step_s, config))
            for task, tokens in TASKS.items()
        }

    def steps_of_an_answer(self, requests: int) -> dict[str, float]:
        """Milliseconds of each task's steps, shared by so many requests that begin together."""
        return {
            task: sum(self.step_s(requests, step + 1) for step in range(tokens + EXTRA_STEPS))
            / requests
            * 1e3
            for task, tokens in TASKS.items()
        }


def step_ends(slots: int) -> Sequence[tuple[int, int]]:
    """The fewest and the most requests of each captured shape of steps."""
    sizes = doubling(MIN_SLOTS, slots, halves=4)
    return list(zip((1, *(size + 1 for size in sizes)), sizes, strict=False))


def on_line(x: float, ends: tuple[float, float], values: tuple[float, float]) -> float:
    """What lies at `x` on the line through two values."""
    share = (x - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 1.0
    return values[0] + share * (values[1] - values[0])


def reckon(
    card_name: str,
    size: str,
    *,
    requests: int,
    beams: int,
    length: int,
    crowds: int = 100,
    fp8: bool = False,
    encode_stream: bool = False,
    adapters: int = 0,
) -> dict[str, Any]:
    """Every figure, as JSON can hold it. `fp8`, `encode_stream`: with these settings, which are off by
    default. `adapters`: beside the language model, of rank 16."""
    card = CARDS[card_name]
    shown = requests, mean_length(length)
    grid = {(number, each) for ends in step_ends(64) for number in ends for each in POSITIONS}
    wanted = tuple(sorted({*grid, shown}))
    counts = count(size, beams, wanted, ENCODES, crowds, fp8, adapters)
    reckoner = Reckoner(card, counts, encode_stream)
    settings = {"FLORENCE_DTYPE=fp8": fp8, "FLORENCE_ENCODE_STREAM=true": encode_stream}
    settings[f"{adapters} adapters"] = adapters > 0
    rows = {
        str(concurrency): {
            "different pictures": reckoner.rows(concurrency, new_pictures=True),
            "one picture": reckoner.rows(concurrency, new_pictures=False),
        }
        for concurrency in CONCURRENCIES
    }
    return {
        "reckoned, not measured": True,
        "card": card.name,
        "size": size,
        "settings": [name for name, on in settings.items() if on],
        "step": _step(reckoner, requests, length),
        "steps of an answer at 30, ms": reckoner.steps_of_an_answer(30),
        "encode": _encode(reckoner),
        "graphs": counts.graphs,
        "rows": rows,
        "replaced": {str(number): dict(rates) for number, rates in REPLACED.items()},
        "check": tower_check(counts) if size == "large" and not fp8 else None,
    }


def _step(reckoner: Reckoner, requests: int, length: int) -> dict[str, Any]:
    ledger = reckoner.counts.steps[requests, mean_length(length)]
    needed = needed_bytes(reckoner.counts.shape, requests, length)
    total = sum(needed.values())
    return {
        "requests": requests,
        "beams": reckoner.counts.shape.beams,
        "length": length,
        "kernels": ledger.kernels,
        "moved, GB": ledger.moved / 1e9,
        "needed, GB": total / 1e9,
        "of them": {name: each / 1e9 for name, each in needed.items()},
        "TFLOP": ledger.flop / 1e12,
        "ms": ledger.seconds(reckoner.card) * 1e3,
        "floor, ms": reckoner.card.floor_s(total, ledger.flop) * 1e3,
        "kernels by operation": dict(ledger.by_name().most_common()),
    }


def _encode(reckoner: Reckoner) -> dict[str, Any]:
    encode = reckoner.counts.encodes[ENCODES[-1]]
    names = ("tower", "encoder and cross")
    fp8_flop = sum(graph.fp8_flop for graph in encode.graphs)
    flop = sum(graph.flop for graph in encode.graphs) - fp8_flop
    device, host = reckoner.device_s(encode), reckoner.host_s(encode)
    return {
        "pictures": encode.pictures,
        "kernels": sum(graph.kernels for graph in encode.graphs),
        "parts": {
            name: {
                "kernels": graph.kernels,
                "moved, GB": graph.moved / 1e9,
                "TFLOP": graph.flop / 1e12,
                "ms": graph.seconds(reckoner.card) * 1e3,
            }
            for name, graph in zip(names, encode.graphs, strict=True)
        },
        "launches between graphs": encode.between,
        "ms a picture": device / encode.pictures * 1e3,
        "host, ms a picture": host / encode.pictures * 1e3,
        "by class": _classes(reckoner.card, encode),
        "floor, ms a picture": reckoner.card.floor_s(0.0, flop, fp8_flop) / encode.pictures * 1e3,
    }


def _classes(card: Card, encode: Encode) -> dict[str, dict[str, float]]:
    """Kernels, GB, TFLOP and reckoned ms a picture of an encode: products, attention, and all others, which
    go over memory."""
    found: dict[str, dict[str, float]] = {}
    for each in (operation for graph in encode.graphs for operation in graph.operations):
        name = next((name for name in ("product", "attention") if name in each.kind), "memory")
        row = found.setdefault(name, dict.fromkeys(("kernels", "moved, GB", "TFLOP", "ms a picture"), 0.0))
        row["kernels"] += each.kernels
        row["moved, GB"] += each.moved / 1e9
        row["TFLOP"] += each.flop / 1e12
        seconds = card.seconds(each.kind, each.kernels, each.moved, each.worked)
        row["ms a picture"] += seconds / encode.pictures * 1e3
    return found


def tower_check(counts: Counts) -> dict[str, float]:
    """The tower by PyTorch's operations, as timm has it, pictures a second on an RTX 4090: as timm measured
    it, as reckoned with the card's published peaks, and with an H100's shares of them."""
    card = CARDS["4090"]

    def rate(each: Card) -> float:
        return ENCODES[-1] / counts.eager.seconds(each)

    return {"timm": TIMM_TOWER, "published peaks": rate(whole_peaks(card)), "H100's shares": rate(card)}
