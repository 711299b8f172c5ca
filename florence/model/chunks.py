"""Work in parts: a generator that yields between them and returns its result, so that others may go first."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Parts = Generator[None, None, T]


def last_of(parts: Parts[T]) -> T:
    """The result of work in parts, done without a pause."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: T = end.value
            return result


def waiting(parts: Parts[T], wait: Callable[[], None]) -> Parts[T]:
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
