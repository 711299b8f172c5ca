"""Work in chunks: a generator that yields between them and returns its result, so that other work can run in
between."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Chunks = Generator[None, None, T]


def run_to_end(chunks: Chunks[T]) -> T:
    """The result of work in chunks, done without a pause."""
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: T = end.value
            return result


def with_barrier(chunks: Chunks[T], barrier: Callable[[], None]) -> Chunks[T]:
    """The same chunks, each followed by a call of `barrier`."""
    try:
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                barrier()
                result: T = end.value
                return result
            barrier()
            yield
    finally:
        chunks.close()
