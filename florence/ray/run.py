"""A bulk run on a cluster: jobs in, rows out. Ray Data schedules, moves, retries and scales.

A batch whose node died is retried elsewhere, without duplicate rows. Knows nothing about files of answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.data import Dataset
from ray.exceptions import RayError

from florence.errors import FlorenceError, Unavailable
from florence.ray.actor import CONCURRENCY, FlorenceActor
from florence.ray.pool import ActorPool, data_context
from florence.ray.sink import PartResult, PartSink
from florence.ray.source import JobSource


@dataclass(frozen=True)
class RayRun:
    """The settings of a run. `concurrency`: pictures at a time for each actor, and in a batch. `ordered`:
    keep the order of the jobs. `actor`: further arguments of `FlorenceActor`."""

    pool: ActorPool = field(default_factory=ActorPool)
    concurrency: int = CONCURRENCY
    ordered: bool = False
    actor: dict[str, Any] = field(default_factory=dict)

    def dataset(self, source: JobSource, *, lines: bool) -> Dataset:
        """The outcomes as a lazy dataset, in the format of `FlorenceActor`."""
        jobs: Any = source.dataset(self.pool.max_size + 1)
        asked: Dataset = jobs.map_batches(
            FlorenceActor,
            fn_constructor_kwargs={**self.actor, "concurrency": self.concurrency, "lines": lines},
            batch_size=self.concurrency,
            batch_format="pandas",
            compute=self.pool.strategy(),
            **self.pool.resources(),
        )
        return asked

    def lines(self, source: JobSource) -> Iterator[dict[str, str | None]]:
        """Rows of `rows.LINES`, as they are computed. Raises the error that ended the run on the cluster."""
        with data_context(ordered=self.ordered, bars=False), _own_errors():
            blocks: Iterable[Any] = self.dataset(source, lines=True).iter_batches(
                batch_size=None, batch_format="pyarrow"
            )
            for block in blocks:
                yield from block.to_pylist()

    def write_parts(self, source: JobSource, out: Path, rows: int, *, bars: bool) -> PartResult:
        """Write the answers on the nodes, into a directory that all nodes share. `rows`: of a part. `bars`:
        whether Ray shows progress bars. Raises `RequestError` where the directory is not shared."""
        sink = PartSink(out, rows)
        with data_context(ordered=self.ordered, bars=bars), _own_errors():
            self.dataset(source, lines=False).write_datasink(
                sink, ray_remote_args={"num_cpus": 0}, concurrency=self.pool.max_size + 1
            )
        return sink.result


@contextmanager
def _own_errors() -> Iterator[None]:
    """Unwrap our own errors from Ray's."""
    try:
        yield
    except RayError as error:
        seen: BaseException | None = getattr(error, "cause", None) or error
        while seen is not None and not isinstance(seen, FlorenceError):
            seen = getattr(seen, "cause", None) or seen.__cause__
        if seen is None:
            last = str(error).strip().splitlines()[-1]  # after the tracebacks of other processes
            raise Unavailable(f"the run ended on the cluster: {last}") from error
        raise seen from error
