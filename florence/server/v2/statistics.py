"""Counts and durations of v2 requests, as Triton's statistics and metrics.

Knows nothing about requests or models; a `Tally` holds the counts.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any, NamedTuple

from florence.server.observability.prometheus_text import metric_text
from florence.server.v2.model import ServedModel
from florence.server.v2.tally import LATEST, PENDING, Tally


class Reason(StrEnum):
    """Why a request failed, in Triton's words."""

    REJECTED = "REJECTED"  # no room in the queue, or not in time
    CANCELED = "CANCELED"  # its client left
    BACKEND = "BACKEND"  # the picture, the task or the text is wrong, or the model failed
    OTHER = "OTHER"


class Spans(NamedTuple):
    """The parts of one answered request's time, in nanoseconds: waiting, reading its pictures, the model,
    making the reply; under Triton's names."""

    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int


_NAME = "nv_inference_"
_DOING = ("waiting", "reading pictures", "in the model", "making replies")  # a field of `Spans` each
_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_BATCH = "batch."  # prefix of a request's number of rows
_FAILURE = "failure."  # prefix of the reason


class Statistics:
    """Counters of one model. A request counts once, however many rows it has; rows are counted apart.

    As in Triton, malformed requests (body, inputs, outputs, options) are not counted, while one with a wrong
    picture, task or text is a failure: those are checked by the model.
    """

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self._tally = Tally(served.name)

    def begin(self) -> None:
        """Count a well-formed request as pending."""
        self._tally.add(PENDING, 1)

    def succeed(self, rows: int, spans: Spans) -> None:
        """Count a pending request of `rows` rows as answered, with its times."""
        self._end()
        self._tally.add("rows", rows)
        self._add_time("success", sum(spans))
        for name, ns in spans._asdict().items():
            self._add_time(name, ns)
            if name in _COMPUTE:
                self._add_time(f"{_BATCH}{rows}.{name}", ns)

    def fail_for(self, reason: Reason, ns: int) -> None:
        """Count a pending request as failed, `ns` nanoseconds after it came."""
        self._end()
        self._add_time("fail", ns)
        self._tally.add(_FAILURE + reason, 1)

    def _end(self) -> None:
        self._tally.add(PENDING, -1)
        self._tally.set(LATEST, time.time_ns() // 1_000_000)

    def _add_time(self, name: str, ns: int) -> None:
        self._tally.add(f"{name}.count", 1)
        self._tally.add(f"{name}.ns", ns)

    def as_dict(self) -> dict[str, Any]:
        """The model's entry in Triton's statistics. `batch_stats` are by the rows of a request."""
        counts = self._tally.values()

        def duration(name: str) -> dict[str, int]:
            return {"count": counts[f"{name}.count"], "ns": counts[f"{name}.ns"]}

        rows = {int(name.split(".")[1]) for name in counts if name.startswith(_BATCH)}
        return {
            "name": self.served.name,
            "version": self.served.version,
            "last_inference": counts[LATEST],
            "inference_count": counts["rows"],
            "execution_count": counts["success.count"],
            "inference_stats": {
                name: duration(name)
                for name in ("success", "fail", *Spans._fields, "cache_hit", "cache_miss")
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": size, **{part: duration(f"{_BATCH}{size}.{part}") for part in _COMPUTE}}
                for size in sorted(rows)
            ],
            "memory_usage": [],
        }

    def as_metrics(self) -> str:
        """The same in Prometheus' text format, under Triton's names."""
        counts = self._tally.values()
        labels = f'model="{self.served.name}",version="{self.served.version}"'
        failures = {f'{labels},reason="{reason}"': counts[_FAILURE + reason] for reason in Reason}
        whole = counts["success.ns"] + counts["fail.ns"]
        counters = (
            ("request_success", "Answered inference requests", counts["success.count"]),
            ("count", "Rows of answered inference requests", counts["rows"]),
            ("exec_count", "Inference requests that the model answered", counts["success.count"]),
            ("request_duration_us", "Microseconds of all inference requests", whole // 1000),
            *(
                (f"{name}_duration_us", f"Microseconds spent {doing}", counts[f"{name}.ns"] // 1000)
                for name, doing in zip(Spans._fields, _DOING, strict=True)
            ),
        )
        lines = [
            metric_text(_NAME + "request_failure", "Failed inference requests", failures),
            *(metric_text(_NAME + name, text, {labels: value}) for name, text, value in counters),
            metric_text(
                _NAME + "pending_request_count",
                "Inference requests not yet answered",
                {labels: counts[PENDING]},
                "gauge",
            ),
        ]
        return "".join(lines)
