"""A worker's garbage collection: never of what it has loaded, and a full one only while few objects are in
use."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from florence.server.garbage import FEW, RARELY, collect_if_cheap, collect_rarely, importing, set_aside


class Node:
    """An object that refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Turn automatic collection off during the test, and restore it."""
    threshold = gc.get_threshold()
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(*threshold)


def test_the_collector_passes_over_what_a_worker_has_loaded() -> None:
    """A full collection, which stops the event loop, skips what the worker has loaded."""
    before = gc.get_freeze_count()
    loaded: list[list[object]] = [[] for _ in range(1000)]
    set_aside()
    assert gc.get_freeze_count() >= before + len(loaded)
    assert not any(each is loaded for each in gc.get_objects())


def test_nothing_is_collected_while_a_process_imports() -> None:
    """Collection is off during imports, and later skips what was imported."""
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        imported: list[list[object]] = [[] for _ in range(1000)]
    assert gc.isenabled()
    gc.disable()
    assert gc.get_freeze_count() >= before + len(imported)
    assert not any(each is imported for each in gc.get_objects())


def test_garbage_is_collected_while_that_is_cheap() -> None:
    """Garbage is collected while few objects are in use; with many it stays until they are gone."""
    set_aside()
    found = weakref.ref(Node())
    assert found() is not None
    assert collect_if_cheap()
    assert found() is None

    in_use: list[list[object]] = [[] for _ in range(FEW + 1)]
    gc.collect()  # now in the oldest generation
    found = weakref.ref(Node())
    assert not collect_if_cheap()
    assert found() is not None
    in_use.clear()
    assert collect_if_cheap()
    assert found() is None


def test_python_itself_makes_full_collections_rarely() -> None:
    """Full collections become rare; the young generations are collected as before."""
    young = gc.get_threshold()[:2]
    collect_rarely()
    assert gc.get_threshold() == (*young, RARELY)
