"""When a worker collects garbage: full collections, which hold up the event loop, are made while they are
cheap.

A full collection looks at every object that refers to others: a million of the packages and the model, and
some 300 for each request that waits. Python would make several in a burst, while all of these are in use.
Knows Python's collector; nothing about requests.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

RARELY: Final = 400
"""Collections of the middle generation before Python makes a full one of itself; its own default is 10. So
many come with some 10,000 requests."""
EVERY_S: Final = 2.0
FEW: Final = 50_000
"""Old objects, without those set aside: a full collection of so many takes some 10 ms."""


@contextmanager
def importing() -> Iterator[None]:
    """While a process imports its program: no collection, which would find nothing and take a fifth of the
    time. None will look at what is there by the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_rarely() -> None:
    """In a worker, from its start: let Python make full collections rarely."""
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)


def set_aside() -> None:
    """In a worker whose model is loaded: let no collection look at what is there by now."""
    gc.collect()
    gc.freeze()


def collect_while_cheap() -> None:
    """Try a full collection every two seconds, in a thread that ends with the process."""
    threading.Thread(target=_watch, name="florence-garbage", daemon=True).start()


def collect_if_cheap() -> bool:
    """A full collection, unless there are many objects; whether it was made."""
    if len(gc.get_objects(generation=2)) > FEW:
        return False
    gc.collect()
    return True


def _watch() -> None:
    while True:
        time.sleep(EVERY_S)
        collect_if_cheap()
