"""Shared parts of the benchmarks' commands: a parser, the cost of some work, and medians."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

Cost = tuple[float, float]
"""CPU seconds, wall seconds."""


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring with its line breaks."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def now() -> Cost:
    """The CPU and wall time of this process."""
    return time.process_time(), time.perf_counter()


def since(began: Cost) -> Cost:
    """The CPU and wall time that passed since a reading of `now`."""
    return time.process_time() - began[0], time.perf_counter() - began[1]


def cost(run: Callable[[], object]) -> Cost:
    """Run some work and return the CPU and wall time that it took."""
    began = now()
    run()
    return since(began)


def medians(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """The median of each column."""
    return tuple(map(statistics.median, zip(*rows, strict=True)))
