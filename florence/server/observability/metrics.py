"""Prometheus metrics of the engine. In BentoML's multiprocess mode, `/metrics` sums them over the workers.

Knows the engine's events, and what a worker says of its model. `prometheus_client` must be imported after
BentoML has set the directory of the workers' files, so an `EngineMetrics` is made in a worker, not on import.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import bentoml

from florence.engine.observer import FinishReason, Observer, RequestReport
from florence.server.observability.tracing import bentoml_tracing, trace_request

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REQUEST_SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PARTS: Final = {
    "read": "From a request's arrival until its picture was read",
    "queue": "Waiting in the queue",
    "encode": "Encoding its picture and prompt, with those of others",
    "decode": "Decoding its answer",
    "total": "From a request's arrival to its end",
}
_NO_TASK: Final = "unknown"
_LIBRARIES: Final = ("bentoml", "torch")
_LABELS_OF_MODEL: Final = ("checkpoint", "device", "dtype", "encode_stream")
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EngineMetrics(Observer):
    """Counts the events of one engine. `labels`: those of BentoML's batch size metric, without `method_name`.
    `on_finished`: called with each request's report too."""

    def __init__(
        self, labels: Mapping[str, str], on_finished: Callable[[RequestReport], None] | None = None
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        # Not the global registry, where two services in one process would clash. BentoML reads the workers'
        # files.
        self.registry = registry = CollectorRegistry()

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"florence_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        def gauge(name: str, text: str, *names: str, mode: Any = "livesum") -> Gauge:
            return Gauge(f"florence_{name}", text, names, registry=registry, multiprocess_mode=mode)

        sizes = Histogram(
            "bentoml_service_adaptive_batch_size",
            "Requests that share an encode or a decode step",
            [*labels, "method_name"],
            buckets=_SIZES,
            registry=registry,
        )
        self._encode_size = sizes.labels(method_name="encode", **labels)
        self._decode_size = sizes.labels(method_name="decode", **labels)
        self._rows = Histogram("florence_step_rows", "Beams in a step", buckets=_SIZES, registry=registry)
        self._read = seconds("read", "Reading one picture: decoding and resizing")
        self._queue = seconds("queue", "Waiting in the queue")
        self._encode = seconds("encode", "Encoding one batch of pictures and prompts")
        self._step = seconds("step", "One decode step of the whole batch")
        self._reading = gauge("reading_requests", "Requests whose pictures wait to be read, or are read")
        self._waiting = gauge("queue_requests", "Requests in the queue")
        self._encoding = gauge("encoding_requests", "Requests that are being encoded, or were taken for it")
        self._decoding = gauge("decoding_requests", "Requests that are being decoded: slots in use")
        self._requests = Counter("florence_requests", "Requests by end", ["outcome"], registry=registry)
        self._tokens = Counter("florence_tokens", "Tokens generated", registry=registry)
        pictures = Counter(
            "florence_pictures", "Pictures by where they came from", ["source"], registry=registry
        )
        self._from_tower, self._from_memory = pictures.labels("tower"), pictures.labels("memory")
        for ending in FinishReason:  # each is shown from the start
            self._requests.labels(ending.value)
        self._parts = {
            part: Histogram(
                f"florence_request_{part}_seconds",
                text,
                ["task", "outcome"],
                buckets=_REQUEST_SECONDS,
                registry=registry,
            )
            for part, text in _PARTS.items()
        }
        self._keys = Counter(
            "florence_key_requests", "Requests by API key and end", ["key", "outcome"], registry=registry
        )
        self._bytes = gauge("memory_bytes", "Bytes of caches and buffers", "part")
        self._ready = gauge("ready_seconds", "From a worker's start until it was ready", mode="livemax")
        labels_of_build = ("version", "python", *_LIBRARIES, *_LABELS_OF_MODEL)
        self._build = gauge("build_info", "What runs; always 1", *labels_of_build, mode="livemax")
        self._on_finished = on_finished
        self._memory: Callable[[], Mapping[str, int]] = dict

    def ready(self, info: Mapping[str, Any], memory: Callable[[], Mapping[str, int]], seconds: float) -> None:
        """Record that a worker is ready, `seconds` after its start. `info` and `memory`: as `Florence2` has
        them."""
        self._ready.set(seconds)
        self._build.labels(
            version=_version("florence2-server"),
            python=platform.python_version(),
            **{name: _version(name) for name in _LIBRARIES},
            **{name: str(info[name]) for name in _LABELS_OF_MODEL},
        ).set(1)
        self._memory = memory
        self._measure()

    def finished(self, report: RequestReport) -> None:
        labels = (report.task or _NO_TASK, report.outcome.value)
        for part, histogram in self._parts.items():
            seconds = getattr(report, f"{part}_s")
            if seconds is not None:
                histogram.labels(*labels).observe(seconds)
        self._requests.labels(report.outcome.value).inc()
        if report.owner:
            self._keys.labels(report.owner, report.outcome.value).inc()
        if self._on_finished is not None:
            self._on_finished(report)

    def reading(self, change: int) -> None:
        self._reading.inc(change)

    def read(self, seconds: float) -> None:
        self._read.observe(seconds)

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        self._waiting.set(waiting)
        self._encoding.set(encoding)
        self._decoding.set(decoding)

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        self._encode_size.observe(requests)
        self._encode.observe(seconds)
        self._from_tower.inc(pictures)
        self._from_memory.inc(requests - pictures)
        self._measure()

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        self._decode_size.observe(requests)
        self._rows.observe(rows)
        self._step.observe(seconds)

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        self._tokens.inc(tokens)
        if ending is not FinishReason.REFUSED:
            self._queue.observe(queue_s)

    def _measure(self) -> None:
        for part, size in self._memory().items():
            self._bytes.labels(part).set(size)


def engine_metrics() -> EngineMetrics:
    """An observer of this worker's engine: metrics with the labels of BentoML's own batches, and spans of
    requests."""
    context = bentoml.server_context
    labels = {
        "runner_name": "florence2",
        "worker_index": str(context.worker_index or 1),
        "service_version": context.bento_version,
        "service_name": context.bento_name,
    }
    return EngineMetrics(labels, functools.partial(trace_request, provider=bentoml_tracing()))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # an image that has the code only
        return ""
