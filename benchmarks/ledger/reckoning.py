"""All estimates for one card and one model, in a form for JSON: a step, an encode, the nine tasks.

Combines `counts.py` and `reckoner.py`; prints nothing.
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
from ledger.counting import Ledger
from ledger.counts import ENCODES, POSITIONS, count, needed_bytes, step_ends
from ledger.fakes import Encode, mean_length
from ledger.reckoner import Reckoner

CONCURRENCIES = (30, 36, 64)


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
    """Every estimate, in a form for JSON. `fp8`, `encode_stream`: settings. `adapters`: of rank 16, beside
    the language model's layers."""
    shown = requests, mean_length(length)
    grid = {(number, each) for ends in step_ends(64) for number in ends for each in POSITIONS}
    wanted = tuple(sorted({*grid, shown}))
    reckoner = _reckoner(card_name, size, beams, wanted, ENCODES, crowds, fp8, adapters, size == "large")
    decision = reckoner.decision(encode_stream)
    settings = {"FLORENCE_DTYPE=fp8": fp8}
    settings |= {f"FLORENCE_ENCODE_STREAM={encode_stream}": encode_stream != "auto"}
    settings[f"{adapters} adapters"] = adapters > 0
    return {
        "reckoned, not measured": True,
        "card": reckoner.card.name,
        "size": size,
        "settings": [name for name, on in settings.items() if on],
        "step": _step(reckoner, requests, length),
        "steps of an answer at 30, ms": reckoner.steps_of_an_answer(30),
        "encode": _encode(reckoner),
        "graphs": reckoner.counts.graphs,
        "encode stream": {
            "chosen": encode_stream == "auto",
            **asdict(decision),
            "bearable": _bearable(reckoner),
            "slowdowns": [reckoner.slowdown(number, POSITIONS[1]) for number in (MIN_SLOTS, 64)],
        },
        "rows": _rows(reckoner, decision.runs_beside),
        "replaced": {str(number): dict(rates) for number, rates in REPLACED.items()},
        "check": None if fp8 or reckoner.counts.eager is None else tower_check(reckoner.counts.eager),
    }


def reckon_work(card_name: str, size: str, *, requests: int, beams: int, length: int, adapters: int) -> Any:
    """Only the step and the encode of `reckon`."""
    shown = requests, mean_length(length)
    reckoner = _reckoner(card_name, size, beams, (shown,), ENCODES[-1:], 0, False, adapters)
    return {
        "size": size,
        "settings": [f"{adapters} adapters"] if adapters else [],
        "step": _step(reckoner, requests, length),
        "encode": _encode(reckoner),
    }


@cache
def _reckoner(card_name: str, *counted: Any) -> Reckoner:
    """The reckoner of these counts on a card."""
    return Reckoner(CARDS[card_name], count(*counted))


@cache
def _rows(reckoner: Reckoner, beside: bool) -> dict[str, Any]:
    """The nine tasks at each concurrency, with encodes beside steps or between them."""
    settings = {"different pictures": True, "one picture": False}
    return {
        str(concurrency): {
            name: reckoner.rows(concurrency, new_pictures=new, beside=beside)
            for name, new in settings.items()
        }
        for concurrency in CONCURRENCIES
    }


@cache
def _bearable(reckoner: Reckoner) -> dict[str, float]:
    """The largest slowdown with which each task reaches its aim."""
    return {task: reckoner.bearable(task, least(task) * REPLACED[30][task]) for task in TASKS}


def _step(reckoner: Reckoner, requests: int, length: int) -> dict[str, Any]:
    """The figures of a step."""
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
    """The figures of an encode."""
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
    """Kernels, GB, TFLOP and estimated ms per picture of an encode, for products, attention and all
    others."""
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


def tower_check(tower: Ledger) -> dict[str, float]:
    """Pictures per second of the tower by PyTorch's operations on an RTX 4090: measured by timm, estimated
    with the card's published peaks, and with an H100's shares of them."""
    card = CARDS["4090"]

    def rate(each: Card) -> float:
        return ENCODES[-1] / tower.seconds(each)

    return {"timm": TIMM_TOWER, "published peaks": rate(whole_peaks(card)), "H100's shares": rate(card)}
