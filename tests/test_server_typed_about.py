"""The service's description of itself equals that of the model and the settings."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import jsonschema
import pytest
from fake_model import FakeModel
from starlette.applications import Starlette
from starlette.testclient import TestClient
from v2 import send
from waiting import PATIENCE_S

from florence import Florence2, __version__
from florence.engine.config import EngineConfig
from florence.server.typed.openapi import about_routes
from florence.server.v2.inference import Inference
from florence.server.v2.model import ServedModel
from florence.settings import Settings
from florence.types.info import ModelInfo, ServiceInfo
from florence.types.options import GenerationParameters


@pytest.fixture
def about(model: FakeModel) -> Starlette:
    """The service's routes about itself, with a fake model."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    return Starlette(routes=about_routes(inference, 10_000_000))


def test_info_is_the_models_and_the_services(about: Starlette, model: FakeModel) -> None:
    """/info has each field of the model's info, and the service's version and limits."""
    reply = send(about, "GET", "/info")
    limits = {**model.info()["limits"], "timeout_s": PATIENCE_S, "max_body_bytes": 10_000_000}
    assert reply.status_code == 200
    assert reply.json() == {**model.info(), "version": __version__, "limits": limits}
    assert set(reply.json()) == set(ServiceInfo.model_fields)


def test_the_document_has_the_name_that_is_served(model: FakeModel) -> None:
    """Paths, examples and schemas of v2 and of chats, and the rows that a request may have."""
    documents = []
    for served in (ServedModel(), ServedModel("plates", "2", 7)):
        inference = Inference(PATIENCE_S, served)
        inference.model = model
        reply = send(Starlette(routes=about_routes(inference, 10_000)), "GET", "/docs.json")
        documents.append(reply.json())
    usual, other = documents
    renamed = [re.sub(r"/models/florence2\b", "/models/plates", path) for path in usual["paths"]]
    assert list(other["paths"]) == renamed
    infer = other["paths"]["/v2/models/plates/infer"]["post"]
    answer = infer["responses"]["200"]["content"]["application/json"]["example"]
    assert (answer["model_name"], answer["model_version"]) == ("plates", "2")
    assert ': "florence2"' not in json.dumps(other)
    schemas = other["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["model"]["const"] == "plates"
    inputs = schemas["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    assert inputs["data"]["maxItems"] == 7


def test_the_type_holds_all_that_the_library_says() -> None:
    """The type has exactly the library's fields; limits have their settings' names and defaults."""
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        info = model.info()
    assert ModelInfo.model_validate(info).model_dump(mode="json") == info
    assert set(ModelInfo.model_fields["limits"].annotation.model_fields) == set(info["limits"])  # type: ignore[union-attr]
    settings = Settings().model_dump() | asdict(EngineConfig())
    assert info["limits"] == {name: settings[name] for name in info["limits"]}
    assert set(GenerationParameters.model_fields) < set(info["generation"])
    assert [name for name, value in info["generation"].items() if value is None] == ["seed"]


def test_without_a_model_it_says_when_to_come_back() -> None:
    """Without a model /info is a 503 with Retry-After."""
    reply = send(Starlette(routes=about_routes(Inference(PATIENCE_S), 1)), "GET", "/info")
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) >= 1
    assert "not loaded" in reply.json()["error"]


def test_the_service_has_it_at_its_root(client: TestClient) -> None:
    """The service has /info beside its typed endpoints, and its document describes it."""
    facts = ServiceInfo.model_validate_json(client.get("/info").content)
    assert (facts.checkpoint, facts.limits.max_body_bytes) == ("fake", 200_000)
    operation = client.get("/docs.json").json()["paths"]["/info"]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ServiceInfo"}


def test_v2_bodies_have_schemas_that_hold(client: TestClient) -> None:
    """The v2 examples and their answers are valid by the schemas; an invalid request is a 400."""
    document = client.get("/docs.json").json()

    def schema(part: dict[str, Any]) -> dict[str, Any]:
        return {**part["content"]["application/json"]["schema"], "components": document["components"]}

    for path in ("infer", "generate"):
        operation = document["paths"][f"/v2/models/florence2/{path}"]["post"]
        asked = operation["requestBody"]["content"]["application/json"]["example"]
        jsonschema.validate(asked, schema(operation["requestBody"]))
        reply = client.post(f"/v2/models/florence2/{path}", json=asked)
        assert reply.status_code == 200
        jsonschema.validate(reply.json(), schema(operation["responses"]["200"]))
        for wrong in (
            {},
            {**asked, "parameters": {"num_beams": None}},
            {**asked, "inputs": [], "TASK_PROMPT": 7},
        ):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema(operation["requestBody"]))
            assert client.post(f"/v2/models/florence2/{path}", json=wrong).status_code == 400


def test_chat_completions_have_schemas_that_hold(client: TestClient) -> None:
    """The chat example, its answer, the list of models and an error are valid by the schemas; an invalid
    request has a documented status."""
    document = client.get("/docs.json").json()

    def check(content: Any, part: dict[str, Any]) -> None:
        schema = part["content"]["application/json"]["schema"]
        jsonschema.validate(content, {**schema, "components": document["components"]})

    chat = document["paths"]["/v1/chat/completions"]["post"]
    asked = chat["requestBody"]["content"]["application/json"]["example"]
    for body in (asked, {**asked, "max_tokens": 4, "user": "a", "n": 1, "num_beams": 1, "stream": False}):
        check(body, chat["requestBody"])
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200
        check(reply.json(), chat["responses"]["200"])
    for path, real in (("/v1/models", "/v1/models"), ("/v1/models/{model}", "/v1/models/florence2")):
        operation = document["paths"][path]["get"]
        for listed in (
            client.get(real).json(),
            operation["responses"]["200"]["content"]["application/json"]["example"],
        ):
            check(listed, operation["responses"]["200"])
    for wrong in ({}, {**asked, "model": "gpt"}, {**asked, "messages": []}, {**asked, "num_beams": 99}):
        with pytest.raises(jsonschema.ValidationError):
            check(wrong, chat["requestBody"])
        reply = client.post("/v1/chat/completions", json=wrong)
        assert str(reply.status_code) in chat["responses"]
        check(reply.json(), chat["responses"][str(reply.status_code)])
