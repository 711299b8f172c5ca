"""Spans of requests, by OpenTelemetry: exported as BentoML's own configuration says (`tracing` in its YAML).

Knows reports of requests. A request's spans are made at its end, from the durations of its parts, as children
of the span of its HTTP request or gRPC call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from florence.engine.observer import RequestReport
from florence.server.observability.request_ids import call_facts

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

TRACER: Final = "florence"
_NS: Final = 1_000_000_000


def bentoml_tracing() -> TracerProvider:
    """The tracer provider of BentoML's configuration; it samples no span where tracing is not configured."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    provider: TracerProvider = BentoMLContainer.tracer_provider.get()
    return provider


def read_any_header() -> None:
    """Make OpenTelemetry's middleware, BentoML's outermost, decode any header. It decodes bytes that are not
    UTF-8 as Python's escapes, and fails at invalid ones: a 500 with a traceback."""
    from opentelemetry.instrumentation import asgi

    asgi._decode_header_item = _decode  # it has no option for this


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def trace_request(report: RequestReport, provider: TracerProvider) -> None:
    """Make the spans of a request that has ended: `request`, and below it `read`, `queue`, `encode`, `decode`
    and `answer`, up to the last part that it reached."""
    report.context.run(_trace, report, provider)


def _trace(report: RequestReport, provider: TracerProvider) -> None:
    from opentelemetry.trace import set_span_in_context

    tracer = provider.get_tracer(TRACER)
    attributes = _attributes(report)
    arrived_ns = int(report.arrived * _NS)
    whole = tracer.start_span("request", attributes=attributes, start_time=arrived_ns)
    if whole.is_recording():
        inside = set_span_in_context(whole)
        for name, begin_s, end_s in _parts(report):
            part = tracer.start_span(
                name, inside, attributes=attributes, start_time=arrived_ns + int(begin_s * _NS)
            )
            part.end(arrived_ns + int(end_s * _NS))
    whole.end(arrived_ns + int(report.total_s * _NS))


def _parts(report: RequestReport) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each part, in seconds since the request's arrival."""
    begin_s = 0.0
    for name in ("read", "queue", "encode", "decode"):
        seconds: float | None = getattr(report, f"{name}_s")
        if seconds is None:
            return
        yield name, begin_s, begin_s + seconds
        begin_s += seconds
    yield "answer", begin_s, max(begin_s, report.total_s)


def _attributes(report: RequestReport) -> dict[str, str | int]:
    facts, width, height = call_facts(), *(report.picture_size or (0, 0))
    known: dict[str, str | int] = {
        "florence.task": report.task,
        "florence.outcome": report.outcome.value,
        "florence.beams": report.beams,
        "florence.tokens": report.tokens,
        "florence.picture.width": width,
        "florence.picture.height": height,
        "florence.key": report.owner,
        "florence.request_id": facts.request_id if facts else "",
    }
    return {name: value for name, value in known.items() if value}
