"""Readers: pictures are read in the order of arrival; what is cancelled or left at the end is let go."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
from fake_runner import PATIENCE_S

from florence.runtime.readers import Picture, ReadPicture, ThreadReaders


class Gate:
    """Reads paths: notes their order, and waits until `opened` is set."""

    def __init__(self) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        self.order: list[Picture] = []

    def read(self, image: Picture) -> ReadPicture:
        self.order.append(image)
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        if image == Path("broken"):
            raise OSError("broken")
        return ReadPicture((1, 1), np.zeros((1, 1, 3), np.uint8), b"")


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_reading_starts_in_the_order_of_arrival(gate: Gate) -> None:
    readers = ThreadReaders(gate.read, threads=1)
    names = [Path(str(number)) for number in range(9)]
    futures = [readers.read(name) for name in names]
    gate.opened.set()
    assert all(future.result(PATIENCE_S).size == (1, 1) for future in futures)
    assert gate.order == names
    readers.close()


def test_an_error_of_one_picture_is_its_futures(gate: Gate) -> None:
    readers = ThreadReaders(gate.read, threads=1)
    gate.opened.set()
    bad, good = readers.read(Path("broken")), readers.read(Path("good"))
    assert isinstance(bad.exception(PATIENCE_S), OSError)
    assert good.exception(PATIENCE_S) is None
    readers.close()


class Source:
    """A picture whose end can be seen."""

    def __call__(self) -> bytes:
        raise AssertionError("it is never read")


@pytest.mark.parametrize("closed", [False, True])
def test_an_unread_picture_is_let_go_when_it_is_cancelled_or_left_at_the_end(
    gate: Gate, closed: bool
) -> None:
    """While all readers are busy, so that none comes to it."""
    readers = ThreadReaders(gate.read, threads=1)
    held = readers.read(Path("held"))
    assert gate.reached.wait(PATIENCE_S)
    source = Source()
    left = ref(source)
    unread = readers.read(source)
    del source
    if closed:
        readers.close(drain_s=0.0)
    else:
        assert unread.cancel()
    assert left() is None
    with pytest.raises(CancelledError):
        unread.result(0)
    assert not held.done()
    gate.opened.set()
    assert held.result(PATIENCE_S).size == (1, 1)
    readers.close()
    assert gate.order == [Path("held")]


def test_closing_waits_for_callbacks_of_what_was_read(gate: Gate) -> None:
    readers = ThreadReaders(gate.read)
    seen: list[bool] = []
    for number in range(4):
        readers.read(Path(str(number))).add_done_callback(lambda future: seen.append(future.cancelled()))
    gate.opened.set()
    readers.close()
    assert seen == [False] * 4
