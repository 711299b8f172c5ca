"""Work in chunks: a generator that yields between chunks, so that other work can run, and returns the
result."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")
Chunks = Generator[None, None, T]


def run_to_end(chunks: Chunks[T]) -> T:
    """Run all chunks without a pause, and return the result."""
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: T = end.value
            return result


def yielding(chunks: Chunks[T], value: V) -> Generator[V, None, T]:
    """The same chunks, yielding `value` between them."""
    with closing(chunks):
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                result: T = end.value
                return result
            yield value


def within(chunks: Chunks[T], context: Callable[[], AbstractContextManager[object]]) -> Chunks[T]:
    """The same chunks, each run in a new context."""
    with closing(chunks):
        while True:
            with context():
                try:
                    next(chunks)
                except StopIteration as end:
                    result: T = end.value
                    return result
            yield
