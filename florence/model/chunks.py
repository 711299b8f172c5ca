"""Work in parts: a generator that yields between them and returns its result, so that others may go first."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Chunks = Generator[None, None, T]


def run_to_end(parts: Chunks[T]) -> T:
    """The result of work in parts, done without a pause."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: T = end.value
            return result


def waiting(parts: Chunks[T], wait: Callable[[], None]) -> Chunks[T]:
    """The same parts, each of which ends with `wait`."""
    try:
        while True:
            try:
                next(parts)
            except StopIteration as end:
                wait()
                result: T = end.value
                return result
            wait()
            yield
    finally:
        parts.close()
