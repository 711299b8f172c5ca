"""The figures of `reckoning.py` as Markdown tables. Whatever they show is marked as reckoned."""

from __future__ import annotations

from typing import Any

from ledger.bars import AIMS, NEARLY_ALL_ENCODING
from ledger.costs import TOLERANCE


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def figures_table(figures: dict[str, Any]) -> str:
    """What is aimed at, beside what is reached."""
    step, encode, graphs = figures["step"], figures["encode"], figures["graphs"]
    rows = [
        ["kernels of a decode step", f"{step['kernels']:,}", f"{AIMS['kernels of a step']:.0f}"],
        [
            "a step / its floor",
            f"{step['ms']:.1f} ms / {step['floor, ms']:.1f} ms",
            f"{AIMS['step, ms']:.1f} ms",
        ],
        [
            "bytes that a step moves / needs",
            f"{step['moved, GB']:.1f} GB / {step['needed, GB']:.1f} GB",
            f"{AIMS['bytes moved / needed']:.2f} times",
        ],
        [
            f"kernels of an encode of {encode['pictures']} pictures",
            f"{encode['kernels']:,}",
            f"{AIMS['kernels of an encode']:.0f}",
        ],
        [
            "an encoded picture: device + host / floor",
            f"{encode['ms a picture']:.1f} ms + {encode['host, ms a picture']:.1f} ms"
            f" / {encode['floor, ms a picture']:.1f} ms",
            f"{AIMS['encoded picture, ms']:.1f} ms",
        ],
    ]
    if graphs is not None:
        before, after = graphs
        cell = f"{before} before ready, {after} or more after"
        rows.insert(3, ["graphs of steps and encodes", cell, f"{AIMS['graphs']:.0f}, none after"])
    for setting, least in (
        ("different pictures", AIMS["nine rows, different pictures"]),
        ("one picture", AIMS["nine rows, one picture"]),
    ):
        times = ratios(figures, setting).values()
        aim = f"at least {least:.0f} times" if setting == "one picture" else aim_of_rows()
        rows.append(
            [f"nine tasks at 30, {setting}", f"{min(times):.1f} to {max(times):.1f} times", aim],
        )
    title = f"{figures['size']}, {step['requests']} x {step['beams']}, sequences of {step['length']}"
    return table([f"{title}, {figures['card']}", "reckoned", "aim, at most"], rows)


def aim_of_rows() -> str:
    """The aim for pictures that differ."""
    return (
        f"at least {AIMS['nine rows, different pictures']:.0f} times where nearly all is encoding "
        f"({len(NEARLY_ALL_ENCODING)} tasks), {AIMS['nine rows, one picture']:.0f} on the others"
    )


def ratios(figures: dict[str, Any], setting: str, concurrency: str = "30") -> dict[str, float]:
    """Each task's reckoned rate in multiples of the replaced deployment's."""
    rows, old = figures["rows"][concurrency][setting], figures["replaced"][concurrency]
    return {task: row["rate"] / old[task] for task, row in rows.items()}


def rows_table(figures: dict[str, Any], setting: str) -> str:
    """The nine tasks at each concurrency, beside the replaced deployment where it was measured."""
    concurrencies = list(figures["rows"])
    head = ["task"]
    for concurrency in concurrencies:
        if concurrency in figures["replaced"]:
            head.append(f"replaced, {concurrency} at once")
        head.append(f"reckoned, {concurrency} at once")
    lines = []
    for task in figures["rows"][concurrencies[0]][setting]:
        cells = [task]
        for concurrency in concurrencies:
            rate = figures["rows"][concurrency][setting][task]["rate"]
            old = figures["replaced"].get(concurrency)
            if old is not None:
                cells.append(f"{old[task]}")
            times = "" if old is None else f" ({rate / old[task]:.1f} times)"
            cells.append(f"{rate:.0f}{times}")
        lines.append(cells)
    return table(head, lines)


def check_text(check: dict[str, float]) -> str:
    """How the reckoned tower compares with a measured one."""
    reckoned, timm, shares = check["published peaks"], check["timm"], check["H100's shares"]
    miss = reckoned / timm - 1
    verdict = "within" if abs(miss) <= TOLERANCE else "MISSED: not within"
    return (
        f"Check: davit_huge_fl at 768 x 768 on an RTX 4090 makes {timm:.0f} pictures/s as timm measured it; "
        f"reckoned with the card's published peaks {reckoned:.1f} ({miss:+.0%}, {verdict} {TOLERANCE:.0%}), "
        f"with an H100's shares of them {shares:.1f} ({shares / timm - 1:+.0%})."
    )


def parts_table(figures: dict[str, Any]) -> str:
    """Where an encode's time goes."""
    rows = [
        [name, f"{part['kernels']}", f"{part['moved, GB']:.1f}", f"{part['TFLOP']:.2f}", f"{part['ms']:.1f}"]
        for name, part in figures["encode"]["parts"].items()
    ]
    head = [f"{figures['encode']['pictures']} pictures", "kernels", "GB", "TFLOP", "reckoned ms"]
    return table(head, rows)


def page(figures: dict[str, Any]) -> str:
    """The tables of the performance page."""
    parts = [
        figures_table(figures),
        "Answers a second, reckoned, pictures that all differ:",
        rows_table(figures, "different pictures"),
        "The same, reckoned, with one picture for all requests, as the replaced deployment was measured:",
        rows_table(figures, "one picture"),
        check_text(figures["check"]),
    ]
    return "\n\n".join(parts)


def whole(figures: dict[str, Any]) -> str:
    """Everything, for a reader at a terminal."""
    most = list(figures["step"]["kernels by operation"].items())[:12]
    parts = [
        f"Reckoned, not measured: {figures['card']}, Florence-2-{figures['size']}, "
        f"{' and '.join(figures['settings']) or 'bfloat16'}.",
        figures_table(figures),
        parts_table(figures),
        "Kernels of a step by operation: " + ", ".join(f"{name} {number}" for name, number in most),
        "Answers a second, reckoned, different pictures:",
        rows_table(figures, "different pictures"),
        "Answers a second, reckoned, one picture for all requests, as the replaced deployment was measured:",
        rows_table(figures, "one picture"),
    ]
    if figures["check"] is not None:
        parts.append(check_text(figures["check"]))
    return "\n\n".join(parts)
