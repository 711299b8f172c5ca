"""A short run of the fuzzers; `make fuzz` has the long form."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fuzz
import fuzzing
import grpc
import pytest
import requests
from agents import FakeAsk
from fake_model import FakeModel
from fuzz_agents import MCP, mcp_request, wrong_mcp_answer
from fuzz_calls import call_of
from fuzz_doors import DOORS, Sent, request_of
from fuzz_schema import ask_by_document
from fuzz_senders import grpc_sender, raw_sender, wrong_answer
from serving import ROOT, Server
from starlette.testclient import TestClient

from florence.mcp.roots import Roots
from florence.mcp.server import PictureServer, http_app
from florence.server.v2.tensors import DATATYPES
from florence.types.options import RequestParameters
from florence.types.tasks import TASKS

INPUTS = 150
DATA = ROOT / "data"


@pytest.mark.parametrize("kind", fuzzing.TARGETS)
def test_damaged_inputs_are_read_or_refused(kind: str) -> None:
    """Damaged pictures, bodies and messages raise no exception other than the package's own."""
    target = fuzzing.TARGETS[kind]
    for data in target.seeds().values():
        target.feed(data)
    for number in range(INPUTS):
        target.feed(target.input(kind, 0, number))


def test_an_input_can_be_made_again() -> None:
    """An input depends on kind, seed and number alone, and numbers give different inputs."""
    target = fuzzing.TARGETS["picture"]
    made = [target.input("picture", 1, number) for number in range(20)]
    assert made == [target.input("picture", 1, number) for number in range(20)]
    assert len(set(made)) == 20


def test_every_format_is_among_the_pictures() -> None:
    """Each format is among the pictures, and the undamaged files can be read."""
    formats = {name.split()[0] for name in fuzzing.pictures()}
    assert formats >= {"PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF", "AVIF"}
    for data in fuzzing.pictures().values():
        fuzzing.TARGETS["picture"].take(data)


@pytest.mark.parametrize("door", DOORS)
def test_damaged_requests_get_an_answer(client: TestClient, door: str) -> None:
    """Damaged requests to each endpoint never get a 500, always get an id, and errors have one shape."""
    for number in range(INPUTS // 3):
        sent = request_of(door, 0, number)
        reply = client.request(
            sent.method, sent.path, content=sent.body, headers=[*_header_bytes(sent)], follow_redirects=False
        )
        wrong = wrong_answer(sent, reply.status_code, reply.headers, reply.content)
        assert not wrong, (door, number, wrong, reply.text)


@pytest.mark.slow
def test_damaged_messages_of_agents_get_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Damaged messages to the tools for agents get no 500 and no internal error, no tool fails unexpectedly,
    and most tools are called."""
    ask = FakeAsk()
    app = http_app(PictureServer(ask, Roots([DATA], local=False)), "127.0.0.1")
    with TestClient(app, base_url="http://127.0.0.1:1") as client:
        for number in range(INPUTS):
            sent = mcp_request(MCP, 0, number)
            reply = client.post(sent.path, content=sent.body, headers=[*_header_bytes(sent)])
            wrong = wrong_mcp_answer(sent, reply.status_code, reply.headers, reply.content)
            assert not wrong, (number, wrong, reply.text)
    assert len({question.task for _, question in ask.asked}) > 5
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def _header_bytes(sent: Sent) -> Iterator[tuple[bytes, bytes]]:
    """The headers as bytes."""
    for name, value in sent.headers.items():
        yield name.encode(), value.encode("latin-1", "replace")


def test_requests_have_every_option_task_and_path(document: dict[str, Any]) -> None:
    """The random requests contain every option, task and path of the document."""
    made = [request_of(door, 0, number) for door in DOORS for number in range(400)]
    text = b"".join(sent.body for sent in made)
    for option in RequestParameters.model_fields:
        assert text.count(option.encode()) > 20, option
    for task in TASKS.values():
        assert text.count(task.token.encode()) > 20, task
    paths = {sent.path.partition("?")[0] for sent in made}
    assert paths >= {path.replace("{model}", "florence2") for path in document["paths"]}


def test_calls_have_every_datatype_and_both_contents() -> None:
    """The random calls contain every datatype, and streams of several messages."""
    made = [call_of(door, 0, number) for door in ("grpc", "stream") for number in range(600)]
    text = b"".join(message for call in made for message in call.messages)
    assert all(datatype.encode() in text for datatype in DATATYPES)
    assert max(len(call.messages) for call in made) > 2


@pytest.mark.slow
def test_damage_on_the_wire_does_no_harm(demo_server: Server) -> None:
    """Bytes that are not HTTP, and damaged gRPC calls, get an answer or an end, and the log has no error."""
    name, port = demo_server.url.removeprefix("http://").split(":")
    check = fuzz.log_checker(demo_server.log_path)
    check()
    with grpc.insecure_channel(f"127.0.0.1:{demo_server.grpc_port}") as channel:
        for door in fuzz.OVER_GRPC:
            for number in range(100):
                grpc_sender(channel, door, 0)(number)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(raw_sender((name, int(port)), 0, "127.0.0.1:1"), range(150)))
    check()


@pytest.fixture(scope="session")
def document(shared_client: TestClient, shared_model: FakeModel) -> dict[str, Any]:
    """The service's OpenAPI document."""
    content: dict[str, Any] = json.loads(shared_client.get("/docs.json").content)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_answers_are_as_the_document_says(document: dict[str, Any], client: TestClient, wrong: bool) -> None:
    """Answers to requests that schemathesis makes have a documented status and a valid body, and wrong
    requests are refused."""

    def ask(sent: requests.PreparedRequest) -> Any:
        headers = {name: value for name, value in sent.headers.items() if name.lower() != "content-length"}
        body = sent.body.encode() if isinstance(sent.body, str) else sent.body
        return client.request(str(sent.method), sent.path_url, content=body, headers=headers)

    said = ask_by_document(document, ask, 3 if wrong else 5, 0, wrong=wrong)
    answered = sum(count for status, count in said.items() if status.endswith(" 200"))
    assert answered == 0 if wrong else answered > 20
