"""Metrics of HTTP requests, under BentoML's names and with a bounded number of series."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from serving import Server
from starlette.testclient import TestClient
from waiting import PATIENCE_S

from florence.server.observability.http_metrics import OTHER, HttpMetrics, in_order


def series(metrics: HttpMetrics) -> dict[tuple[str, str], float]:
    """The value of each sample without histogram buckets, by name and endpoint."""
    return {
        (sample.name, sample.labels.get("endpoint", "")): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "le" not in sample.labels and not sample.name.endswith("_created")
    }


def test_any_paths_make_one_series() -> None:
    """All unknown paths count as one endpoint; a known path has its own, also if it ends with a name."""
    metrics = HttpMetrics(["/caption", "/v1/models/{model}", "/tasks/{name}"])
    for path in ("/v1/models/a", "/v1/models/b", "/tasks/a", "/tasks", "/v1/models/a/b"):
        metrics.begin(path)(404)
    assert series(metrics)["bentoml_service_request_total", "/v1/models/{model}"] == 2
    assert series(metrics)["bentoml_service_request_total", "/tasks/{name}"] == 1
    metrics.begin("/caption")(200)
    metrics.begin("/nope")(404)
    before = len(series(metrics))
    for index in range(1000):
        metrics.begin(f"/nope/{index}")(404)
    assert len(series(metrics)) == before
    assert series(metrics)["bentoml_service_request_total", OTHER] == 1003
    assert series(metrics)["bentoml_service_request_total", "/caption"] == 1


def test_requests_under_way_are_counted_until_they_end() -> None:
    """Requests in progress are counted until they end."""
    metrics = HttpMetrics(["/ocr"])
    ends = [metrics.begin("/ocr") for _ in range(3)]
    assert series(metrics)["bentoml_service_request_in_progress", "/ocr"] == 3
    for end in ends:
        end(200)
    assert series(metrics)["bentoml_service_request_in_progress", "/ocr"] == 0
    assert series(metrics)["bentoml_service_request_duration_seconds_count", "/ocr"] == 3


def test_a_histograms_samples_are_in_the_text_formats_order() -> None:
    """A histogram has its buckets in rising order, then count and sum, for each set of labels."""
    histogram = Histogram("h", "text", ["a"], buckets=(1, 2, 10), registry=CollectorRegistry())
    for label in "xy":
        histogram.labels(label).observe(3)
    (metric,) = histogram.collect()
    metric.samples = [each for each in reversed(metric.samples) if not each.name.endswith("_created")]
    got = [(s.labels["a"], s.name, s.labels.get("le")) for s in in_order(metric).samples]
    one = [("h_bucket", "1.0"), ("h_bucket", "2.0"), ("h_bucket", "10.0"), ("h_bucket", "+Inf")]
    assert got == [(label, *each) for label in "xy" for each in [*one, ("h_count", None), ("h_sum", None)]]


def test_an_endpoint_is_known_by_its_path(client: TestClient) -> None:
    """The service's own paths, which the document lists, are labels."""
    from starlette.applications import Starlette

    from florence.server.fetching.fetcher import fetcher_of
    from florence.server.http.routing import known_paths
    from florence.server.openai.app import create_chat_app
    from florence.server.service import build_service
    from florence.server.typed.openapi import about_routes
    from florence.server.v2.inference import Inference
    from florence.settings import Settings

    inference = Inference(PATIENCE_S)
    built = build_service(Settings(grpc_port=0), 0)
    apps = [
        Starlette(routes=about_routes(inference, 1000)),
        create_chat_app(inference, fetcher_of(Settings())),
    ]
    known = known_paths(built, apps, inference.served)
    assert set(client.get("/docs.json").json()["paths"]) - {"/metrics"} <= known
    assert "/v2/models/florence2/versions/1/infer" in known


@pytest.mark.slow
def test_a_scrape_grows_with_no_path(fake_server: Server) -> None:
    """Unknown paths and methods add no series to a running service's scrape, which can be parsed."""

    async def ask() -> None:
        fresh = httpx.Limits(max_connections=100, max_keepalive_connections=0)  # no idle ones
        async with httpx.AsyncClient(base_url=fake_server.url, timeout=300, limits=fresh) as http:
            await asyncio.gather(*(http.request("GET", f"/nope/{i}?{i}") for i in range(60)))
            await asyncio.gather(*(http.post(f"/v2/models/m{i}/infer") for i in range(60)))

    def scraped() -> list[Any]:
        text = httpx.get(fake_server.url + "/metrics", timeout=60).text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    for path in ("/nope", "/v2/models/m/infer", "/caption"):
        httpx.post(fake_server.url + path, timeout=60)
    httpx.get(fake_server.url + "/nope", timeout=60)
    before = scraped()
    asyncio.run(ask())
    after = scraped()
    assert len(after) <= len(before)
    known = {sample.labels["endpoint"] for sample in before if "endpoint" in sample.labels}
    assert {sample.labels["endpoint"] for sample in after if "endpoint" in sample.labels} == known
    assert OTHER in known
