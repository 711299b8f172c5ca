"""What became of the v2 requests: counts and durations, as Triton's statistics and metrics.

Knows nothing about requests or models. One process's numbers: written and read on its event loop only, so no
reader ever sees half of a request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from florence.server.v2.model import ServedModel


class Reason(StrEnum):
    """Why a request failed, in Triton's words."""

    REJECTED = "REJECTED"  # no room in the queue, or not in time
    CANCELED = "CANCELED"  # its client left
    BACKEND = "BACKEND"  # the picture, the task or the text is wrong, or the model failed
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the time of one answered request went, in nanoseconds: waiting, reading its pictures, in the
    model, making the reply."""

    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int

    @property
    def total_ns(self) -> int:
        return self.queue_ns + self.input_ns + self.infer_ns + self.output_ns


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class _Compute:
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, spans: Spans) -> None:
        self.compute_input.add(spans.input_ns)
        self.compute_infer.add(spans.infer_ns)
        self.compute_output.add(spans.output_ns)

    def as_dict(self) -> dict[str, dict[str, int]]:
        parts = ("compute_input", "compute_infer", "compute_output")
        return {name: getattr(self, name).as_dict() for name in parts}


@dataclass(slots=True)
class Statistics:
    """Counters of one model. A request counts once, however many rows it has; rows are counted apart.

    Requests that are refused by their form (body, inputs, outputs, options) change nothing, as with Triton.
    What is in a picture, a task or a text is, as there, the model's to judge: one that is wrong is a failure.
    """

    served: ServedModel = field(default_factory=ServedModel)
    rows: int = 0
    pending: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: _Compute = field(default_factory=_Compute)
    batches: dict[int, _Compute] = field(default_factory=dict)
    failures: Counter[Reason] = field(default_factory=Counter)

    def begin(self) -> None:
        """A request came whose form is right."""
        self.pending += 1

    def succeed(self, rows: int, spans: Spans) -> None:
        """It was answered."""
        self._end()
        self.rows += rows
        self.success.add(spans.total_ns)
        self.queue.add(spans.queue_ns)
        self.compute.add(spans)
        self.batches.setdefault(rows, _Compute()).add(spans)

    def fail_for(self, reason: Reason, ns: int) -> None:
        """It failed, that many nanoseconds after it came."""
        self._end()
        self.fail.add(ns)
        self.failures[reason] += 1

    def _end(self) -> None:
        self.pending -= 1
        self.last_inference_ms = time.time_ns() // 1_000_000

    def as_dict(self) -> dict[str, Any]:
        """The model's entry in Triton's statistics. batch_stats are by the rows of a request."""
        never = Duration().as_dict()
        return {
            "name": self.served.name,
            "version": self.served.version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": self.success.count,
            "inference_stats": {
                "success": self.success.as_dict(),
                "fail": self.fail.as_dict(),
                "queue": self.queue.as_dict(),
                **self.compute.as_dict(),
                "cache_hit": never,
                "cache_miss": never,
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows, **compute.as_dict()} for rows, compute in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }

    def as_metrics(self) -> str:
        """The same in Prometheus' text format, under Triton's names."""
        return "".join(self._metrics())

    def _metrics(self) -> Iterator[str]:
        labels = f'model="{self.served.name}",version="{self.served.version}"'
        metric = partial(_metric, labels)
        failures = "".join(
            f'nv_inference_request_failure{{{labels},reason="{reason}"}} {self.failures[reason]}\n'
            for reason in Reason
        )
        head = "# HELP nv_inference_request_failure Failed inference requests\n"
        yield head + "# TYPE nv_inference_request_failure counter\n" + failures
        yield metric("request_success", "Answered inference requests", self.success.count)
        yield metric("count", "Rows of answered inference requests", self.rows)
        yield metric("exec_count", "Inference requests that the model answered", self.success.count)
        whole = self.success.ns + self.fail.ns
        yield metric("request_duration_us", "Microseconds of all inference requests", whole // 1000)
        yield metric("queue_duration_us", "Microseconds spent waiting", self.queue.ns // 1000)
        compute = self.compute
        yield metric("compute_input_duration_us", "... reading pictures", compute.compute_input.ns // 1000)
        yield metric("compute_infer_duration_us", "... in the model", compute.compute_infer.ns // 1000)
        yield metric("compute_output_duration_us", "... making replies", compute.compute_output.ns // 1000)
        yield metric("pending_request_count", "Inference requests not yet answered", self.pending, "gauge")


def _metric(labels: str, name: str, text: str, value: int, kind: str = "counter") -> str:
    name = f"nv_inference_{name}"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}\n"
