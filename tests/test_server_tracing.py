"""Spans of requests: their parts and attributes, and the client's trace over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from reports import report
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from v2 import send

from florence.engine.observer import FinishReason
from florence.server.observability.request_ids import RequestIds
from florence.server.observability.tracing import trace_request
from florence.server.v2.grpc_interceptors import CallContext

ROOT = Path(__file__).resolve().parents[1]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PARTS = ["read", "queue", "encode", "decode", "answer"]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """The exporter that keeps the spans."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """A provider that exports each span at once."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def named(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """The spans by name."""
    return {span.name: span for span in spans}


def test_an_answer_has_a_span_for_each_part(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    """An answer has one span with a child for each part, in order from arrival to end, each with its
    attributes."""
    trace_request(report(), provider)
    spans = named(exporter.get_finished_spans())
    assert sorted(spans) == sorted([*PARTS, "request"])
    whole = spans["request"]
    assert (whole.start_time, whole.end_time) == (1000 * 10**9, 1004 * 10**9)
    seconds = [(spans[part].start_time / 1e9 - 1000, spans[part].end_time / 1e9 - 1000) for part in PARTS]
    assert seconds == [(0, 0.25), (0.25, 0.75), (0.75, 1.75), (1.75, 3.75), (3.75, 4)]
    for part in PARTS:
        assert spans[part].parent.span_id == whole.context.span_id
        assert spans[part].attributes == {
            "florence.task": "caption",
            "florence.outcome": "stop",
            "florence.beams": 3,
            "florence.tokens": 7,
            "florence.picture.width": 640,
            "florence.picture.height": 480,
            "florence.key": "alice",
        }


@pytest.mark.parametrize("reached", range(5))
def test_a_failure_has_spans_as_far_as_it_came(
    provider: TracerProvider, exporter: InMemorySpanExporter, reached: int
) -> None:
    """A failed request has spans for the parts it reached, and its outcome as an attribute."""
    missing = {f"{part}_s": None for part in PARTS[reached:-1]}
    trace_request(replace(report(), outcome=FinishReason.DEADLINE, **missing), provider)  # type: ignore[arg-type]
    spans = named(exporter.get_finished_spans())
    assert sorted(spans) == sorted(["request", *(PARTS if reached == 4 else PARTS[:reached])])
    assert spans["request"].attributes["florence.outcome"] == "deadline"


def test_nothing_is_made_where_nothing_is_sampled(exporter: InMemorySpanExporter) -> None:
    """Without sampling, BentoML's default, no spans are made."""
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_request(report(), provider)
    assert not exporter.get_finished_spans()


def test_http_requests_continue_the_client_s_trace(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """A request's span is below the HTTP request's, in the client's trace and with its request id; without
    one the trace is new."""

    async def answer(_request: Request) -> Response:
        made = report()
        await asyncio.to_thread(trace_request, made, provider)  # in another thread, as in the service
        return Response()

    app: Any = RequestIds(Starlette(routes=[Route("/", answer)]))
    traced: Any = OpenTelemetryMiddleware(app, tracer_provider=provider)
    send(traced, "GET", "/", headers={"traceparent": TRACEPARENT, "x-request-id": "mine"})
    spans = named(exporter.get_finished_spans())
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert PARENT in {f"{span.parent.span_id:016x}" for span in spans.values()}
    assert spans["read"].attributes["florence.request_id"] == "mine"
    exporter.clear()
    send(traced, "GET", "/")
    (trace,) = {span.context.trace_id for span in exporter.get_finished_spans()}
    assert f"{trace:032x}" != TRACE


@pytest.mark.parametrize(
    "value", [b"\xff\\x", b"00-\\ud\xe9", b"a=\\\xff", b"a,b=\xff," * 60, TRACEPARENT.encode()]
)
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "user-agent", "x-any"])
def test_no_header_breaks_a_request(client: TestClient, name: str, value: bytes) -> None:
    """A header with bytes that are neither UTF-8 nor escapes is answered as usual."""
    headers = [(b"traceparent", TRACEPARENT.encode()), (name.encode(), value)]
    assert client.get("/livez", headers=headers).status_code == 200


def test_grpc_calls_continue_the_client_s_trace(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Unary calls and streams continue the metadata's trace, and return the request id."""

    async def unary(request: bytes, context: Any) -> bytes:
        trace_request(report(), provider)
        return request

    async def stream(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield await unary(request, context)

    async def work() -> list[str]:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Stream": grpc.stream_stream_rpc_method_handler(stream),
        }
        server = grpc.aio.server(interceptors=[CallContext()])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        metadata = (("traceparent", TRACEPARENT), ("x-request-id", "mine"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = [
                channel.unary_unary("/a.B/Unary")(b"x", metadata=metadata),
                channel.stream_stream("/a.B/Stream")(iter([b"x"]), metadata=metadata),
            ]
            ids = [dict(await call.initial_metadata())["x-request-id"] for call in calls]
            assert await calls[0] == b"x"
            assert [each async for each in calls[1]] == [b"x"]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary("/a.B/Nope")(b"x")
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)
        return ids

    assert asyncio.run(work()) == ["mine", "mine"]
    spans = exporter.get_finished_spans()
    assert len(spans) == 2 * 6
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    parents = {f"{span.parent.span_id:016x}" for span in spans if span.name == "request" and span.parent}
    assert parents == {PARENT}


@pytest.mark.slow
def test_spans_go_where_bentoml_s_configuration_says(tmp_path: Path) -> None:
    """The YAML file in the docs sets the exporter and the sample rate."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    yaml = text[text.index("services:\n  tracing:") :].partition("```")[0]
    config = tmp_path / "bentoml.yaml"
    config.write_text(yaml.replace("type: otlp", "type: in_memory").replace("rate: 0.1", "rate: 1.0"))
    # OpenTelemetry has no public way to list a provider's span processors.
    code = (
        "from reports import report\n"
        "from florence.server.service import service_of_environment\n"
        "from florence.server.observability.tracing import bentoml_tracing, trace_request\n"
        "service_of_environment().inject_config()  # as `bentoml serve` does\n"
        "provider = bentoml_tracing()\n"
        "trace_request(report(), provider)\n"
        "provider.force_flush()\n"
        "(processor,) = provider._active_span_processor._span_processors\n"
        "print(len(processor.span_exporter.get_finished_spans()))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "BENTOML_CONFIG": str(config), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["6"], done.stderr
