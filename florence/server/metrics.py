"""Prometheus metrics of the engine. In BentoML's multiprocess mode, `/metrics` sums them over the workers.

Knows the engine's events and nothing else. `prometheus_client` must be imported after BentoML has set the
directory of the workers' files, so an `EngineMetrics` is made in a worker, not on import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from florence.engine.observer import FinishReason, Observer

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EngineMetrics(Observer):
    """Counts the events of one engine. labels: those of BentoML's batch sizes beside the method's name."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        # Not the global one, where two services in one process would clash. BentoML reads the files.
        registry = CollectorRegistry()

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"florence_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"florence_{name}", text, registry=registry, multiprocess_mode="livesum")

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
        self._queue = seconds("queue", "Waiting for a place")
        self._encode = seconds("encode", "Encoding one batch of pictures and prompts")
        self._step = seconds("step", "One decode step of all that are decoded")
        self._reading = gauge("reading_requests", "Requests whose pictures wait to be read, or are read")
        self._waiting = gauge("queue_requests", "Requests that wait for a place")
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

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        self._decode_size.observe(requests)
        self._rows.observe(rows)
        self._step.observe(seconds)

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        self._requests.labels(ending.value).inc()
        self._tokens.inc(tokens)
        if ending is not FinishReason.REFUSED:
            self._queue.observe(queue_s)
