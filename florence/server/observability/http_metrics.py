"""Prometheus metrics of HTTP requests, and `GET /metrics`.

Replaces BentoML's middleware for the same metrics, which makes time series for every path that a client
requests. Knows paths and statuses, nothing about bodies. `prometheus_client` must be imported after BentoML
has set the directory of the workers' files, so the metrics are made with the first request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import bentoml
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from florence.server.http.middleware import HttpMiddleware
from florence.server.observability.metric_files import files_of_the_dead, metrics_folder
from florence.server.v2.tally import HIDDEN

if TYPE_CHECKING:
    from prometheus_client import Metric

OTHER: Final = "other"
"""The `endpoint` of all requests whose path the service does not have."""
PREFIX: Final = "bentoml_service"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_NOT_COUNTED: Final = "/metrics"
_TIMED_OUT: Final = 504  # BentoML's own time limit cancels the request and answers this
_ORDER: Final = ("_bucket", "_count", "_sum")  # of a histogram's samples in the text format


class HttpMetrics:
    """Counts requests under the names and labels of BentoML's own metrics. The `endpoint` is one of `paths`,
    or `OTHER`, so the number of time series is bounded."""

    def __init__(self, paths: Iterable[str]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        context = bentoml.server_context
        common = {
            "service_name": context.bento_name,
            "service_version": context.bento_version,
            "runner_name": context.service_name,
        }
        self._paths, self._common = frozenset(paths), tuple(common.values())
        self._named = {each.partition("{")[0]: each for each in self._paths if each.endswith("}")}
        by_path, by_status = ["endpoint", *common], ["endpoint", *common, "http_response_code"]
        made: dict[str, Any] = {"namespace": PREFIX, "registry": self.registry}
        self._total = Counter("request", "Requests answered", by_status, **made)
        self._seconds = Histogram(
            "request_duration_seconds", "From a request's head to the end of its answer", by_status,
            buckets=_SECONDS, **made,
        )  # fmt: skip
        self._active = Gauge(
            "request_in_progress", "Requests not answered yet", by_path, multiprocess_mode="livesum", **made
        )
        self._last = Gauge(
            "last_request_timestamp_seconds", "When the last request came", list(common),
            multiprocess_mode="max", **made,
        ).labels(*self._common)  # fmt: skip

    def begin(self, path: str) -> Callable[[int], None]:
        """Note the start of a request for `path`; returns a function to call with its status once it is
        answered."""
        known = path if path in self._paths else self._named.get(f"{path.rpartition('/')[0]}/", OTHER)
        labels = (known, *self._common)
        started = time.perf_counter()
        active = self._active.labels(*labels)
        active.inc()
        self._last.set_to_current_time()

        def end(status: int) -> None:
            active.dec()
            self._total.labels(*labels, status).inc()
            self._seconds.labels(*labels, status).observe(time.perf_counter() - started)

        return end


@dataclass(frozen=True)
class CountRequests(HttpMiddleware):
    """Counts HTTP requests, except those for /metrics. `paths`: see `HttpMetrics`."""

    paths: Callable[[], Iterable[str]]

    @cached_property
    def _metrics(self) -> HttpMetrics:
        return HttpMetrics(self.paths())

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == _NOT_COUNTED:
            return await self.app(scope, receive, send)
        end = self._metrics.begin(scope["path"])
        status = _TIMED_OUT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            end(status)


def scrape() -> bytes:
    """The metrics of all workers together, in Prometheus' text format."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    directory = metrics_folder()
    if directory is None:  # an app inside of another program
        return generate_latest(REGISTRY)
    _forget_the_dead(directory)
    collected = MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    shown = [metric for metric in collected if not metric.name.startswith(HIDDEN)]
    registry.register(_Collected([in_order(metric) for metric in shown]))
    return generate_latest(registry)


def _forget_the_dead(directory: Path) -> None:
    """Remove the gauges of killed workers, which would keep their last values."""
    from prometheus_client.multiprocess import mark_process_dead

    for pid in set(files_of_the_dead(directory, "gauge_live*_*.db").values()):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Collected:
    """A collector of given metrics, for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def in_order(metric: Metric) -> Metric:
    """The metric with a histogram's buckets first, in rising order, as the text format wants them."""
    if metric.type == "histogram":
        metric.samples.sort(key=_place)
    return metric


def _place(sample: Any) -> tuple[Any, ...]:
    labels = dict(sample.labels)
    bound = float(labels.pop("le", 0))
    ending = next((index for index, end in enumerate(_ORDER) if sample.name.endswith(end)), len(_ORDER))
    return sorted(labels.items()), ending, bound


def metrics_endpoint(extra: Callable[[], str]) -> Callable[[Request], Awaitable[Response]]:
    """The handler of `GET /metrics`. `extra`: returns further metrics in the text format; called in a thread.
    One scrape runs at a time; all requests that arrive meanwhile share the next one."""
    turn = asyncio.Lock()
    coming: asyncio.Task[bytes] | None = None

    async def scraped() -> bytes:
        nonlocal coming
        async with turn:
            coming = None  # later requests share the next scrape
            text = await anyio.to_thread.run_sync(scrape)
            return text + (await anyio.to_thread.run_sync(extra)).encode()

    async def answer(request: Request) -> Response:
        nonlocal coming
        from prometheus_client import CONTENT_TYPE_LATEST

        if coming is None:
            coming = asyncio.ensure_future(scraped())
        text = await asyncio.shield(coming)  # other requests wait for it too
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return answer
