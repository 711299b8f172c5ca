"""When a worker collects garbage: full collections, which hold up the event loop, are made while they are
cheap.

A full collection visits every container object: a million of the packages and the model, and some 300 for
each request that waits. Python would make several during a burst of requests, while all of these are in use.
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
"""Collections of the middle generation before Python makes a full one by itself; its default is 10. 400 are
reached after some 10,000 requests."""
EVERY_S: Final = 2.0
FEW: Final = 50_000
"""Objects of the oldest generation, without those of `set_aside`: a full collection of this many takes some
10 ms."""


@contextmanager
def importing() -> Iterator[None]:
    """A context for a process's imports: no collection runs, which would find nothing and take a fifth of the
    time. Later collections skip all objects that exist at its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_rarely() -> None:
    """Call at a worker's start: makes Python's own full collections rare."""
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)


def set_aside() -> None:
    """Call in a worker once its model is loaded: later collections skip all objects that exist now."""
    gc.collect()
    gc.freeze()


def collect_while_cheap() -> None:
    """Try a full collection every two seconds, in a thread that ends with the process."""
    threading.Thread(target=_watch, name="florence-garbage", daemon=True).start()


def collect_if_cheap() -> bool:
    """Make a full collection, unless there are more than `FEW` objects; returns whether it was made."""
    if len(gc.get_objects(generation=2)) > FEW:
        return False
    gc.collect()
    return True


def _watch() -> None:
    while True:
        time.sleep(EVERY_S)
        collect_if_cheap()
