"""The figures of `reckoning.py` as Markdown tables. All figures shown are marked as reckoned."""

from __future__ import annotations

from typing import Any

from ledger.bars import AIMS, NEARLY_ALL_ENCODING, least
from ledger.costs import AUDITED, SHARED, TOLERANCE


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def figures_table(figures: dict[str, Any]) -> str:
    """The aims beside the estimated figures."""
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
            "an encoded picture / its floor",
            f"{encode['ms a picture']:.1f} ms / {encode['floor, ms a picture']:.1f} ms, and"
            f" {encode['host, ms a picture']:.1f} ms of the host and its copies beside the work before it",
            f"{AIMS['encoded picture, ms']:.1f} ms",
        ],
    ]
    if graphs is not None:
        before, after = graphs
        cell = f"{before} before ready, {after} or more after"
        rows.insert(3, ["graphs of steps and encodes", cell, f"{AIMS['graphs']:.0f}, none after"])
    for setting, times_least in (
        ("different pictures", AIMS["nine rows, different pictures"]),
        ("one picture", AIMS["nine rows, one picture"]),
    ):
        times = ratios(figures, setting).values()
        aim = f"at least {times_least:.0f} times" if setting == "one picture" else aim_of_rows()
        rows.append(
            [f"nine tasks at 30, {setting}", f"{min(times):.1f} to {max(times):.1f} times", aim],
        )
    title = f"{figures['size']}, {step['requests']} x {step['beams']}, sequences of {step['length']}"
    return table([f"{title}, {figures['card']}", "reckoned", "aim, at most"], rows)


def aim_of_rows() -> str:
    """The aim for different pictures."""
    return (
        f"at least {AIMS['nine rows, different pictures']:.0f} times where nearly all is encoding "
        f"({len(NEARLY_ALL_ENCODING)} tasks), {AIMS['nine rows, one picture']:.0f} on the others"
    )


def ratios(figures: dict[str, Any], setting: str) -> dict[str, float]:
    """Each task's estimated rate as a multiple of the replaced deployment's."""
    rows, old = figures["rows"]["30"][setting], figures["replaced"]["30"]
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
    """A comparison of the estimated tower with a measured one."""
    reckoned, timm, shares = check["published peaks"], check["timm"], check["H100's shares"]
    miss = reckoned / timm - 1
    verdict = "within" if abs(miss) <= TOLERANCE else "MISSED: not within"
    return (
        f"Check: davit_huge_fl at 768 x 768 on an RTX 4090 makes {timm:.0f} pictures/s as timm measured it; "
        f"reckoned with the card's published peaks {reckoned:.1f} ({miss:+.0%}, {verdict} {TOLERANCE:.0%}), "
        f"with an H100's shares of them {shares:.1f} ({shares / timm - 1:+.0%})."
    )


def parts_table(figures: dict[str, Any]) -> str:
    """An encode's time by part."""
    rows = [
        [name, f"{part['kernels']}", f"{part['moved, GB']:.1f}", f"{part['TFLOP']:.2f}", f"{part['ms']:.1f}"]
        for name, part in figures["encode"]["parts"].items()
    ]
    head = [f"{figures['encode']['pictures']} pictures", "kernels", "GB", "TFLOP", "reckoned ms"]
    return table(head, rows)


def classes_table(figures: dict[str, Any]) -> str:
    """An encode's time by class of kernels."""
    names = {
        "product": "products, biases, sums and GELU with them",
        "attention": "attention of windows and of the text encoder",
        "memory": "positions, norms, attention of channels and copies, at the speed of memory",
    }
    found = figures["encode"]["by class"]
    rows = [
        [
            names[name],
            f"{row['kernels']:.0f}",
            f"{row['moved, GB']:.1f}",
            f"{row['TFLOP']:.2f}",
            f"{row['ms a picture']:.2f}",
        ]
        for name, row in sorted(found.items(), key=lambda item: -item[1]["ms a picture"])
    ]
    head = [f"an encode of {figures['encode']['pictures']} pictures", "kernels", "GB", "TFLOP"]
    return table([*head, "reckoned ms a picture"], rows)


def missed_text(figures: dict[str, Any]) -> str:
    """The tasks that miss their aim.

    Where encodes run between steps it also gives the reason: the time of an answer, the share of its steps,
    the rest for an encode, and the time of the encode's products alone.
    """
    missed = [task for task, times in ratios(figures, "different pictures").items() if times < least(task)]
    if not missed:
        return "All nine tasks reach their aim, as reckoned."
    if figures["encode stream"]["runs_beside"]:
        return f"As reckoned, {' and '.join(missed)} don't reach their aim."
    lines = []
    for task in missed:
        answer = 1e3 / (least(task) * figures["replaced"]["30"][task])
        steps = figures["steps of an answer at 30, ms"][task]
        lines.append(
            f"{task}: {least(task):.0f} times is an answer in {answer:.2f} ms; its share of steps takes "
            f"{steps:.2f}, which leaves {answer - steps:.2f} for an encode."
        )
    products = figures["encode"]["by class"]["product"]["ms a picture"]
    lines.append(
        f"An encode's products alone take {products:.2f} ms at the assumed rate, everything "
        f"{figures['encode']['ms a picture']:.2f}. One after the other, in bfloat16, these tasks can't reach "
        "their aims, as reckoned."
    )
    return "\n".join(f"- {line}" for line in lines)


def stream_text(figures: dict[str, Any]) -> str:
    """The place of encodes and its reason, the slowdown of steps, and the audit's estimate."""
    found = figures["encode stream"]
    where = "beside" if found["runs_beside"] else "between"
    by = "as the trial at the start would decide" if found["chosen"] else "as it is set"
    low, high = found["slowdowns"]
    borne = sorted((factor, task) for task, factor in found["bearable"].items() if factor < 2)
    lines = [
        f"Encodes run {where} decode steps, {by}. Reckoned: {found['why']}.",
        f"Beside each other, an encode and steps of few or of 64 requests take {low:.2f} or {high:.2f} times "
        "as long as alone: the mean over all pairs of their kernels, which share the card's bandwidth and "
        f"products, and never less than {1 + SHARED:.2f}. At 2 nothing would be gained.",
    ]
    if borne:
        limits = ", ".join(f"{task} up to {factor:.2f}" for factor, task in borne)
        lines.append(f"Some tasks reach their aim only up to a slowdown, as reckoned: {limits}.")
    rates = {task: row["rate"] for task, row in figures["rows"]["30"]["different pictures"].items()}
    more = {task: rates[task] / AUDITED[task] - 1 for task in rates}
    told = ", ".join(f"{task} {share:+.0%}" for task, share in more.items())
    if found["runs_beside"] and figures["size"] == "large" and not figures["settings"]:
        lines.append(f"Beside what an audit of this code estimated for two streams on an H100: {told}.")
    return "\n".join(f"- {line}" for line in lines)


def page(figures: dict[str, Any]) -> str:
    """The tables of the performance page."""
    parts = [
        figures_table(figures),
        "Answers a second, reckoned, pictures that all differ:",
        rows_table(figures, "different pictures"),
        missed_text(figures),
        stream_text(figures),
        classes_table(figures),
        "The same nine tasks, reckoned, with one picture for all requests, as the replaced deployment was "
        "measured:",
        rows_table(figures, "one picture"),
        check_text(figures["check"]),
    ]
    return "\n\n".join(parts)


def settings_table(found: list[dict[str, Any]]) -> str:
    """Figures of several settings; the first are the default's."""
    rows = []
    for figures in found:
        different, one = (ratios(figures, name) for name in ("different pictures", "one picture"))
        reached = sum(times >= least(task) for task, times in different.items())
        names = [f"`{name}`" if "=" in name else name for name in figures["settings"]]
        rows.append(
            [
                " and ".join(names) or "default",
                f"{figures['encode']['ms a picture']:.1f} ms",
                f"{min(different.values()):.1f} to {max(different.values()):.1f} times",
                f"{reached} of {len(different)}",
                f"{min(one.values()):.1f} times",
            ]
        )
    head = ["large, 30 at once", "an encoded picture, reckoned", "nine tasks, different pictures"]
    return table([*head, "that reach their aim", "one picture, at least"], rows)


def adapters_table(found: list[dict[str, Any]]) -> str:
    """The cost of adapters of the language model's layers for steps and encodes."""
    rows = []
    for figures in found:
        step, encode = figures["step"], figures["encode"]
        rows.append(
            [
                f"{figures['size']}, {', '.join(figures['settings']) or 'no adapter'}",
                f"{step['kernels']}",
                f"{step['moved, GB']:.2f} GB",
                f"{step['ms']:.2f} ms",
                f"{encode['kernels']}",
                f"{sum(part['moved, GB'] for part in encode['parts'].values()):.1f} GB",
                f"{encode['ms a picture']:.2f} ms",
            ]
        )
    head = ["reckoned, 64 x 3", "kernels of a step", "bytes", "time", "kernels of an encode of 16", "bytes"]
    return table([*head, "a picture"], rows)


def whole(figures: dict[str, Any]) -> str:
    """All tables, for a terminal."""
    most = list(figures["step"]["kernels by operation"].items())[:12]
    parts = [
        f"Reckoned, not measured: {figures['card']}, Florence-2-{figures['size']}, "
        f"{' and '.join(figures['settings']) or 'bfloat16'}.",
        figures_table(figures),
        parts_table(figures),
        classes_table(figures),
        "Kernels of a step by operation: " + ", ".join(f"{name} {number}" for name, number in most),
        "Answers a second, reckoned, different pictures:",
        rows_table(figures, "different pictures"),
        missed_text(figures),
        stream_text(figures),
        "Answers a second, reckoned, one picture for all requests, as the replaced deployment was measured:",
        rows_table(figures, "one picture"),
    ]
    if figures["check"] is not None:
        parts.append(check_text(figures["check"]))
    return "\n\n".join(parts)
