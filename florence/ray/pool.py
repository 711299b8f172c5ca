"""The number of actors, their resources, and the cluster. Knows Ray; knows nothing about pictures."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, DataContext

from florence.errors import RequestError, Unavailable, quote

LOCAL: Final = "local"
MAX_CALLS: Final = 3
"""Batches that an actor processes at a time: the engine stays full while one ends and another begins."""
MAX_IN_FLIGHT: Final = 4
"""Batches sent to an actor: those that it processes, and one that waits there."""
BLOCK_BYTES: Final = 16 * 2**20
"""Bytes of a block of an archive's pictures: less than Ray's 128 MiB, so that one archive makes several
blocks."""


@dataclass(frozen=True, slots=True)
class ActorPool:
    """From `min_size` to `max_size` actors, each with `gpus` GPUs and `cpus` cores. `cpus` None: an actor's
    share of the cluster's cores; 0 if it has a GPU."""

    min_size: int = 1
    max_size: int = 1
    gpus: float | None = None
    cpus: float | None = None

    @classmethod
    def parse(cls, text: str, gpus: float | None = None, cpus: float | None = None) -> ActorPool:
        """Parse `4` or `2..8`. Raises `RequestError` for any other text."""
        found = re.fullmatch(r"([1-9][0-9]{0,4})(?:\.\.([1-9][0-9]{0,4}))?", text, re.ASCII)
        if found and int(found[1]) <= (max_size := int(found[2] or found[1])):
            return cls(int(found[1]), max_size, gpus, cpus)
        raise RequestError(f"actors are a number, such as 4, or a range, such as 2..8, got {quote(text)}")

    def resources(self) -> dict[str, float]:
        """An actor's resources, as arguments of `map_batches`, on the cluster of this process. Raises
        `RequestError` where no node has as many."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        cores = [node["CPU"] for node in nodes if node.get("CPU")]
        cpus = self.cpus
        if cpus is None:
            cpus = 0 if gpus else max(min([*cores, sum(cores) // self.max_size]), 1) if cores else 1
        wanted = {"num_gpus": gpus, "num_cpus": cpus}
        return {name: amount for name, amount in wanted.items() if amount or name == "num_cpus"}

    def strategy(self) -> ActorPoolStrategy:
        """The pool for `map_batches`; its actors process several batches at a time."""
        return ActorPoolStrategy(
            min_size=self.min_size,
            max_size=self.max_size,
            max_tasks_in_flight_per_actor=MAX_IN_FLIGHT,
            max_concurrent_calls_per_actor=MAX_CALLS,
            enable_true_multi_threading=True,
        )


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A context that is connected to a cluster. `address`: as for `ray.init`; None: RAY_ADDRESS, or else a
    local cluster that ends with the context. An existing connection of this process is reused.

    Raises `Unavailable` where there is no cluster.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or LOCAL
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # logs of Ray's C++ part in this process
    more: dict[str, Any] = {"include_dashboard": False} if where == LOCAL else {}
    try:
        ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Unavailable(f"no Ray cluster at {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def data_context(*, ordered: bool, bars: bool) -> Iterator[None]:
    """Ray Data's settings during a run: whether rows keep their order, and whether progress bars are
    shown."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # about missing bars
    own = DataContext.get_current().copy()
    own.execution_options.preserve_order = ordered
    own.enable_progress_bars = bars
    own.print_on_execution_start = False
    own.target_max_block_size = BLOCK_BYTES
    with DataContext.current(own):
        yield
