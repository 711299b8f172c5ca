"""All figures of one card and one model, as JSON can hold them: a step, an encode, the nine tasks.

Puts together what `counts.py` and `reckoner.py` make; prints nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

from closed_loop import TASKS
from replaced import REPLACED

from florence.engine.config import EncodeStreamChoice
from florence.engine.device.capture.buckets import MIN_SLOTS
from ledger.bars import least
from ledger.costs import CARDS, TIMM_TOWER, Card, whole_peaks
from ledger.counts import ENCODES, POSITIONS, Counts, count, needed_bytes, step_ends
from ledger.fakes import Encode, mean_length
from ledger.reckoner import Reckoner

CONCURRENCIES = (30, 36, 64)


@cache
def reckon(
    card_name: str,
    size: str,
    *,
    requests: int,
    beams: int,
    length: int,
    crowds: int = 100,
    fp8: bool = False,
    encode_stream: EncodeStreamChoice = "auto",
    adapters: int = 0,
) -> dict[str, Any]:
    """Every figure, as JSON can hold it. `fp8`, `encode_stream`: with these settings. `adapters`: beside the
    language model, of rank 16."""
    card = CARDS[card_name]
    shown = requests, mean_length(length)
    grid = {(number, each) for ends in step_ends(64) for number in ends for each in POSITIONS}
    wanted = tuple(sorted({*grid, shown}))
    counts = count(size, beams, wanted, ENCODES, crowds, fp8, adapters)
    reckoner = Reckoner(card, counts, encode_stream)
    settings = {"FLORENCE_DTYPE=fp8": fp8}
    settings |= {f"FLORENCE_ENCODE_STREAM={encode_stream}": encode_stream != "auto"}
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
        "encode stream": {
            "chosen": encode_stream == "auto",
            **asdict(reckoner.decision),
            "bearable": {task: reckoner.bearable(task, least(task) * REPLACED[30][task]) for task in TASKS},
            "slowdowns": [reckoner.slowdown(number, POSITIONS[1]) for number in (MIN_SLOTS, 64)],
        },
        "rows": rows,
        "replaced": {str(number): dict(rates) for number, rates in REPLACED.items()},
        "check": tower_check(counts) if size == "large" and not fp8 else None,
    }


def reckon_work(card_name: str, size: str, *, requests: int, beams: int, length: int, adapters: int) -> Any:
    """A step and an encode only, as `reckon` has them."""
    counts = count(size, beams, ((requests, mean_length(length)),), ENCODES[-1:], 0, False, adapters)
    reckoner = Reckoner(CARDS[card_name], counts)
    return {
        "size": size,
        "settings": [f"{adapters} adapters"] if adapters else [],
        "step": _step(reckoner, requests, length),
        "encode": _encode(reckoner),
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
