"""Two models in one service: each answers under its own name and version, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fake_model import FakeModel
from grpc_calls import message
from starlette.applications import Starlette
from tritonclient.grpc import service_pb2, service_pb2_grpc
from v2 import PICTURE, picture, request, roomy, send
from waiting import PATIENCE_S

from florence.server.v2.grpc_server import GrpcServer
from florence.server.v2.http_app import V2App
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.model import ServedModel

MODELS = [ServedModel(), ServedModel("other", "3", max_batch_size=2)]


@pytest.fixture
def fakes() -> Iterator[dict[str, FakeModel]]:
    """The fake models by name."""
    made = {served.name: FakeModel(checkpoint=served.name) for served in MODELS}
    yield made
    for fake in made.values():
        fake.close()


@pytest.fixture
def repository(fakes: dict[str, FakeModel]) -> ModelRepository:
    """A repository of both models."""
    inferences = [Inference(PATIENCE_S, served) for served in MODELS]
    for inference in inferences:
        inference.model = fakes[inference.served.name]
    return ModelRepository(inferences)


@pytest.fixture
def both(repository: ModelRepository) -> Starlette:
    """The v2 routes of both models."""
    return V2App(repository, 10_000_000)


@pytest.mark.parametrize("served", MODELS)
def test_each_model_answers_under_its_own_name(both: Starlette, served: ServedModel) -> None:
    """Metadata, configuration, infer with and without a version, and generate have the model's own name."""
    path = f"/v2/models/{served.name}"
    metadata = send(both, "GET", path).json()
    assert (metadata["name"], metadata["versions"]) == (served.name, [served.version])
    config = send(both, "GET", path + "/config").json()
    assert (config["name"], config["max_batch_size"]) == (served.name, served.max_batch_size)
    for infer in (path + "/infer", f"{path}/versions/{served.version}/infer"):
        reply = send(both, "POST", infer, json=request())
        answer = reply.json()
        assert reply.headers["florence-checkpoint"] == served.name
        assert (answer["model_name"], answer["model_version"]) == (served.name, served.version)
        assert json.loads(answer["outputs"][0]["data"][0]) == {"<CAPTION>": "a fake"}
    body = {"INPUT_IMAGE": PICTURE, "TASK_PROMPT": "<CAPTION>"}
    assert send(both, "POST", path + "/generate", json=body).json()["model_name"] == served.name


def test_limits_and_versions_are_each_models_own(both: Starlette) -> None:
    """Each model has its own batch limit and version."""
    rows = request([PICTURE] * 3, ["<CAPTION>"] * 3)
    assert send(both, "POST", "/v2/models/florence2/infer", json=rows).status_code == 200
    reply = send(both, "POST", "/v2/models/other/infer", json=rows)
    assert reply.status_code == 400
    assert reply.json()["error"].endswith("inference request batch-size must be <= 2 for 'other'")
    assert send(both, "GET", "/v2/models/other/versions/1").status_code == 404
    assert send(both, "GET", "/v2/models/florence2/versions/3").status_code == 404


def test_requests_are_counted_by_model(both: Starlette) -> None:
    """Requests are counted by model, and reported for one or all."""
    send(both, "POST", "/v2/models/other/infer", json=request())
    entries = send(both, "GET", "/v2/models/stats").json()["model_stats"]
    assert [(entry["name"], entry["version"], entry["inference_count"]) for entry in entries] == [
        ("florence2", "1", 0),
        ("other", "3", 1),
    ]
    assert send(both, "GET", "/v2/models/other/stats").json()["model_stats"] == entries[1:]


def test_the_server_is_ready_with_all_its_models(both: Starlette, fakes: dict[str, FakeModel]) -> None:
    """A loading model makes the server not ready, as in Triton, and leaves the other model ready."""
    assert send(both, "GET", "/v2/health/ready").status_code == 200
    fakes["other"].ready = False
    assert send(both, "GET", "/v2/health/ready").status_code == 503
    assert send(both, "GET", "/v2/models/other/ready").status_code == 503
    assert send(both, "GET", "/v2/models/florence2/ready").status_code == 200
    index = send(both, "POST", "/v2/repository/index").json()
    states = [(entry["name"], entry["state"]) for entry in index]
    assert states == [("florence2", "READY"), ("other", "LOADING")]
    ready = send(both, "POST", "/v2/repository/index", json={"ready": True}).json()
    assert [entry["name"] for entry in ready] == ["florence2"]


def test_grpc_has_both_models(repository: ModelRepository, fakes: dict[str, FakeModel]) -> None:
    """gRPC has both models, and a stream's error names its model."""

    async def check() -> None:
        server = GrpcServer(repository, 10_000_000, shared=False, budget=roomy())
        port = await server.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for served in MODELS:
                    await _check_model(stub, served, fakes[served.name])
                index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
                assert [entry.name for entry in index.models] == ["florence2", "other"]
                fakes["other"].ready = False
                asked = [service_pb2.ModelReadyRequest(name=served.name) for served in MODELS]
                assert [(await stub.ModelReady(each)).ready for each in asked] == [True, False]
                assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        finally:
            await server.stop(0)

    asyncio.run(check())


async def _check_model(stub: Any, served: ServedModel, fake: FakeModel) -> None:
    """Check one model over gRPC."""
    named = {"name": served.name, "version": served.version}
    metadata = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(**named))
    assert (metadata.name, list(metadata.versions)) == (served.name, [served.version])
    config = await stub.ModelConfig(service_pb2.ModelConfigRequest(**named))
    assert config.config.max_batch_size == served.max_batch_size
    asked = message({"INPUT_IMAGE": [picture()], "TASK_PROMPT": [b"<CAPTION>"]})
    asked.model_name, asked.model_version = served.name, ""
    answer = await stub.ModelInfer(asked)
    assert (answer.model_name, answer.model_version) == (served.name, served.version)
    assert len(fake.calls) == 1
    statistics = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(**named))
    assert [entry.inference_count for entry in statistics.model_stats] == [1]
    asked.inputs[0].name = "NOPE"
    failed = await stub.ModelStreamInfer(iter([asked])).read()
    assert failed.infer_response.model_name == served.name
    assert f"for model '{served.name}'" in failed.error_message
