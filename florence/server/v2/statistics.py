"""Counts and durations of v2 requests, as Triton's statistics and metrics.

Knows nothing about requests or models. One process's counters, used on its event loop only, without locks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from florence.server.v2.model import ServedModel


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


_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


def _durations(names: Iterable[str] = Spans._fields) -> dict[str, Duration]:
    return {name: Duration() for name in names}


@dataclass(slots=True)
class Statistics:
    """Counters of one model. A request counts once, however many rows it has; rows are counted apart.

    As in Triton, malformed requests (body, inputs, outputs, options) are not counted, while one with a wrong
    picture, task or text is a failure: those are checked by the model.
    """

    served: ServedModel = field(default_factory=ServedModel)
    rows: int = 0
    pending: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    parts: dict[str, Duration] = field(default_factory=_durations)  # by the fields of `Spans`
    batches: dict[int, dict[str, Duration]] = field(default_factory=dict)  # _COMPUTE's, by a request's rows
    failures: Counter[Reason] = field(default_factory=Counter)

    def begin(self) -> None:
        """A well-formed request has come."""
        self.pending += 1

    def succeed(self, rows: int, spans: Spans) -> None:
        """It is answered."""
        self._end()
        self.rows += rows
        self.success.add(sum(spans))
        batch = self.batches.setdefault(rows, _durations(_COMPUTE))
        for name, ns in spans._asdict().items():
            self.parts[name].add(ns)
            if name in batch:
                batch[name].add(ns)

    def fail_for(self, reason: Reason, ns: int) -> None:
        """It has failed. ns: since it came."""
        self._end()
        self.fail.add(ns)
        self.failures[reason] += 1

    def _end(self) -> None:
        self.pending -= 1
        self.last_inference_ms = time.time_ns() // 1_000_000

    def as_dict(self) -> dict[str, Any]:
        """The model's entry in Triton's statistics. batch_stats are by the rows of a request."""
        never, counted = asdict(Duration()), asdict(self)
        return {
            "name": self.served.name,
            "version": self.served.version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": self.success.count,
            "inference_stats": {
                "success": counted["success"],
                "fail": counted["fail"],
                **counted["parts"],
                "cache_hit": never,
                "cache_miss": never,
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows, **parts} for rows, parts in sorted(counted["batches"].items())
            ],
            "memory_usage": [],
        }

    def as_metrics(self) -> str:
        """The same in Prometheus' text format, under Triton's names."""
        labels = f'model="{self.served.name}",version="{self.served.version}"'
        failures = {f'{labels},reason="{reason}"': self.failures[reason] for reason in Reason}
        whole = self.success.ns + self.fail.ns
        counters = (
            ("request_success", "Answered inference requests", self.success.count),
            ("count", "Rows of answered inference requests", self.rows),
            ("exec_count", "Inference requests that the model answered", self.success.count),
            ("request_duration_us", "Microseconds of all inference requests", whole // 1000),
            ("queue_duration_us", "Microseconds spent waiting", self.parts["queue"].ns // 1000),
            ("compute_input_duration_us", "... reading pictures", self.parts["compute_input"].ns // 1000),
            ("compute_infer_duration_us", "... in the model", self.parts["compute_infer"].ns // 1000),
            ("compute_output_duration_us", "... making replies", self.parts["compute_output"].ns // 1000),
        )
        pending = {labels: self.pending}
        return (
            _metric("request_failure", "Failed inference requests", failures)
            + "".join(_metric(name, text, {labels: value}) for name, text, value in counters)
            + _metric("pending_request_count", "Inference requests not yet answered", pending, "gauge")
        )


def _metric(name: str, text: str, values: Mapping[str, int], kind: str = "counter") -> str:
    """The lines of one metric. values: by their labels."""
    name = f"nv_inference_{name}"
    lines = "".join(f"{name}{{{labels}}} {value}\n" for labels, value in values.items())
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{lines}"
