"""A running service with two workers and API keys, as an operator sees it: logs, ids, metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
import requests
from serving import Server, free_port, serving_fake
from tritonclient.grpc import service_pb2, service_pb2_grpc
from v2 import INFER, picture
from v2 import request as infer_request
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow
ALICE, BOB = "a" * 32, "b" * 32
CALLS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service of two workers with a fake model, a BentoML configuration and a JSON log."""
    config = tmp_path_factory.mktemp("bentoml") / "config.yaml"
    config.write_text("services: {tracing: {exporter_type: in_memory, sample_rate: 1.0}}\n")
    settings = {
        "FLORENCE_DEVICE": "cpu,cpu",
        "FLORENCE_LOG_FORMAT": "json",
        "FLORENCE_API_KEYS": f"alice:{ALICE},bob:{BOB}",
        "FLORENCE_GRPC_PORT": str(free_port()),
        "BENTOML_CONFIG": str(config),
    }
    with serving_fake(**settings) as started:
        started.wait_ready()
        wait_until(lambda: started.log.count("ready: ") == 2)
        yield started


def ask(server: Server, path: str, key: str = ALICE, request_id: str = "") -> requests.Response:
    """The reply to a request on its own connection, so that any worker may get it."""
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": request_id, "Connection": "close"}
    if path == INFER:
        return requests.post(server.url + path, json=infer_request(), headers=headers, timeout=PATIENCE_S)
    return requests.post(server.url + path, files={"image": picture()}, headers=headers, timeout=PATIENCE_S)


def v2_counts(server: Server) -> tuple[str, int]:
    """The number of successes in the metrics and in the statistics."""
    text = requests.get(server.url + "/metrics", headers={"Connection": "close"}, timeout=PATIENCE_S).text
    (line,) = [each for each in text.splitlines() if each.startswith("nv_inference_request_success{")]
    headers = {"Authorization": f"Bearer {ALICE}", "Connection": "close"}
    stats = requests.get(
        server.url + "/v2/models/florence2/stats", headers=headers, timeout=PATIENCE_S
    ).json()
    return line.rsplit(" ", 1)[1], stats["model_stats"][0]["execution_count"]


def lines(server: Server) -> list[dict[str, object]]:
    """The complete lines of the log, the supervisor's too, parsed as JSON."""
    return [json.loads(line) for line in server.log.rpartition("\n")[0].splitlines() if line]


def test_v2_counts_are_the_same_whichever_worker_is_asked(server: Server) -> None:
    """Each worker reports the requests of both."""
    before = int(v2_counts(server)[0])
    for _ in range(CALLS):
        assert ask(server, INFER).status_code == 200
    seen = {v2_counts(server) for _ in range(CALLS)}
    assert seen == {(str(before + CALLS), before + CALLS)}


@pytest.mark.parametrize("path", ["/caption", INFER])
def test_an_answer_is_one_line_with_id_and_key_name(server: Server, path: str) -> None:
    """An answer has one log line with the client's request id and the key's name, but not the key."""
    request_id = "id-of-" + path.rpartition("/")[2]
    assert ask(server, path, BOB, request_id).headers["X-Request-Id"] == request_id
    wait_until(lambda: any(each.get("request_id") == request_id for each in lines(server)))
    (line,) = [each for each in lines(server) if each.get("request_id") == request_id]
    assert (line["key"], line["task"], line["outcome"]) == ("bob", "<CAPTION>", "stop")
    assert ALICE not in server.log
    assert BOB not in server.log


def test_each_request_has_an_id_of_its_own(server: Server) -> None:
    """A request without an id gets a unique one, also if it is refused."""
    ids = Counter(ask(server, "/caption", key).headers["X-Request-Id"] for key in (ALICE, BOB, "wrong") * 2)
    assert set(ids.values()) == {1}


def test_grpc_calls_have_ids_too(server: Server) -> None:
    """gRPC metadata carries the request id in and out."""
    metadata = (("x-request-id", "of-grpc"), ("authorization", f"Bearer {ALICE}"))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        _, call = stub.ServerMetadata.with_call(service_pb2.ServerMetadataRequest(), metadata=metadata)
        assert dict(call.initial_metadata())["x-request-id"] == "of-grpc"


def test_build_and_start_are_in_the_metrics(server: Server) -> None:
    """The metrics have one series of build information, and the slower worker's start time."""
    text = requests.get(server.url + "/metrics", timeout=PATIENCE_S).text
    (build,) = [line for line in text.splitlines() if line.startswith("florence_build_info{")]
    assert 'checkpoint="fake"' in build
    (ready,) = [line for line in text.splitlines() if line.startswith("florence_ready_seconds ")]
    assert float(ready.split()[1]) >= 0
