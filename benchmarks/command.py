"""What the benchmarks' commands share: a parser, the cost of a piece of work, medians."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

Cost = tuple[float, float]
"""CPU seconds, wall seconds."""


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it stands there."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def now() -> Cost:
    """What this process has taken so far."""
    return time.process_time(), time.perf_counter()


def since(began: Cost) -> Cost:
    """What it has taken since a reading of `now`."""
    return time.process_time() - began[0], time.perf_counter() - began[1]


def cost(run: Callable[[], object]) -> Cost:
    """What a piece of work takes."""
    began = now()
    run()
    return since(began)


def medians(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """The median of each column."""
    return tuple(map(statistics.median, zip(*rows, strict=True)))
