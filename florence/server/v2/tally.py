"""Counts of v2 requests, of all workers of a service together.

Knows names and numbers only. The workers' counts are in the files of `prometheus_client`'s multiprocess mode,
whose directory BentoML sets: so it must be imported after that, with the first count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from florence.server.observability.metric_files import metrics_folder

if TYPE_CHECKING:
    from prometheus_client import Gauge

HIDDEN: Final = "florence_v2_counts_"
"""Prefix of these metrics' names; /metrics shows them under Triton's names instead."""
PENDING: Final = "pending"
"""Requests in progress: this count ends with its worker. All other counts outlive theirs."""
LATEST: Final = "latest"
"""When the last request ended: the maximum over workers, not the sum."""
_MODES: Final[Mapping[str, str]] = {PENDING: "livesum", LATEST: "max"}
_LABELS: Final = ("model", "count")


class Tally:
    """A model's counts by name, of all workers together; of this process where there are no workers. Used
    without locks: changed on one event loop, read in any thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._counts: Counter[str] = Counter()
        self._shared: dict[str, Gauge] = {}

    @cached_property
    def _directory(self) -> Path | None:
        """The workers' files; None where there are no workers."""
        return metrics_folder()

    @cached_property
    def _gauges(self) -> dict[str, Gauge]:
        """One for each way to combine the workers' values."""
        from prometheus_client import CollectorRegistry
        from prometheus_client import Gauge as NewGauge

        made: dict[str, Gauge] = {}
        for mode in ("sum", *_MODES.values()):
            made[mode] = NewGauge(
                HIDDEN + mode,
                "Counts of v2 requests",
                _LABELS,
                registry=CollectorRegistry(),
                multiprocess_mode=mode,  # type: ignore[arg-type]  # a literal
            )
        return made

    def add(self, name: str, amount: int) -> None:
        """Add `amount` to a count."""
        self.set(name, self._counts[name] + amount)

    def set(self, name: str, value: int) -> None:
        """Set a count."""
        self._counts[name] = value
        if not self._directory:
            return
        if name not in self._shared:
            self._shared[name] = self._gauges[_MODES.get(name, "sum")].labels(self._model, name)
        self._shared[name].set(value)

    def values(self) -> Counter[str]:
        """All counts so far."""
        if not self._directory:
            return self._counts.copy()
        from prometheus_client.multiprocess import MultiProcessCollector

        files = [str(file) for mode in self._gauges for file in self._directory.glob(f"gauge_{mode}_*.db")]
        merged = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        samples = [each for metric in merged if metric.name.startswith(HIDDEN) for each in metric.samples]
        own = [(dict(each.labels), int(each.value)) for each in samples]
        return Counter({labels["count"]: value for labels, value in own if labels["model"] == self._model})
