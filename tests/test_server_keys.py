"""API keys over HTTP and gRPC, from a setting and from a file that changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from fake_model import FakeModel
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from triton_client import triton_inputs
from tritonclient.utils import InferenceServerException
from v2 import INFER, picture, request, roomy, send
from waiting import PATIENCE_S

from florence.errors import SettingsError, Unauthorized
from florence.server.http.paths import OPEN_PATHS
from florence.server.http.routing import middleware_of
from florence.server.keys import CHECK_S, ApiKeys, FileKeys, caller, keys_of, read_keys
from florence.server.v2.grpc_server import GrpcServer
from florence.server.v2.inference import Inference, ModelRepository
from florence.settings import Settings, read_settings

ALICE, BOB = "a1" * 16, "b2" * 16
CLOSED_PATHS = ["/caption", "/analyze", "/info", INFER, "/v2", "/v2/models/florence2/stats", "/anything"]


def bearer(key: str) -> dict[str, str]:
    """The header with this key."""
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def keys() -> ApiKeys:
    """The keys of two callers."""
    made = keys_of(f"alice:{ALICE},bob:{BOB}", None)
    assert made is not None
    return made


@pytest.fixture
def repository(model: FakeModel) -> ModelRepository:
    """A repository with a fake model."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    return ModelRepository([inference])


async def _name(_request: Any) -> Response:
    """Reply with the caller's name."""
    return JSONResponse({"caller": caller()})


@pytest.fixture
def guarded(repository: ModelRepository, keys: ApiKeys) -> Starlette:
    """An app with the service's middleware, whose other routes reply with the caller's name."""
    routes = [Route("/{path:path}", _name, methods=["GET", "POST", "OPTIONS"])]
    return Starlette(routes=routes, middleware=middleware_of(repository, 100_000, keys, budget=roomy()))


@pytest.mark.parametrize("path", CLOSED_PATHS)
@pytest.mark.parametrize(
    "headers",
    [{}, bearer("x" * 32), bearer(ALICE[:-1]), {"authorization": ALICE}, {"authorization": "Basic x"}],
)
def test_doors_are_closed_without_a_key(guarded: Starlette, path: str, headers: dict[str, str]) -> None:
    """Without a right key the reply is a 401 with help and the scheme, sent before the body is read."""
    reply = send(guarded, "POST", path, content=b"x" * 200_000, headers=headers)
    assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer KEY" in reply.json()["error"]
    assert ALICE not in reply.text


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_and_pages_are_open(guarded: Starlette, path: str) -> None:
    """Probes and pages need no key."""
    assert send(guarded, "GET", path).status_code != 401


def test_metrics_are_closed_by_setting(repository: ModelRepository, keys: ApiKeys) -> None:
    """Metrics need a key if `open_paths` does not have them."""
    middleware = middleware_of(repository, 1000, keys, OPEN_PATHS - {"/metrics"}, budget=roomy())
    app = Starlette(routes=[Route("/metrics", _name)], middleware=middleware)
    assert send(app, "GET", "/metrics").status_code == 401
    assert send(app, "GET", "/metrics", headers=bearer(BOB)).status_code == 200


def test_a_key_opens_all_doors_under_its_name(guarded: Starlette) -> None:
    """A key opens each endpoint, which gets the key's name; the scheme's letter case doesn't matter."""
    assert send(guarded, "POST", INFER, json=request(), headers=bearer(ALICE)).status_code == 200
    for name, key in (("alice", ALICE), ("bob", BOB)):
        reply = send(guarded, "POST", "/caption", headers={"authorization": f"bearer {key}"})
        assert reply.json() == {"caller": name}


def test_a_browsers_preflight_needs_no_key(guarded: Starlette) -> None:
    """A browser's preflight, which can't send a key, needs none."""
    assert send(guarded, "OPTIONS", "/caption").status_code != 401


@pytest.fixture
def grpc_port(repository: ModelRepository, keys: ApiKeys) -> Iterator[int]:
    """The port of a gRPC server with keys, whose loop runs in another thread."""
    from threading import Thread

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE_S)

    async def start() -> tuple[GrpcServer, int]:
        server = GrpcServer(repository, 10**6, keys, shared=False, budget=roomy())
        return server, await server.start("127.0.0.1", 0)

    server, port = run(start())
    yield port
    run(server.stop(0))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_grpc_needs_a_key_too(grpc_port: int) -> None:
    """Without a key, gRPC calls and streams are UNAUTHENTICATED with the same help; liveness and health
    checks are open."""
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in (None, bearer("x" * 40)):
            for call in (
                lambda sent: client.get_server_metadata(headers=sent),
                lambda sent: client.infer("florence2", triton_inputs(picture()), headers=sent),
            ):
                with pytest.raises(InferenceServerException, match="Bearer KEY") as caught:
                    call(headers)
                assert caught.value.status() == f"{grpc.StatusCode.UNAUTHENTICATED}"
        assert client.get_server_metadata(headers=bearer(ALICE)).name
        answer = client.infer("florence2", triton_inputs(picture()), headers=bearer(BOB))
        assert answer.as_numpy("PARSED_JSON").size == 1
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=PATIENCE_S) == b"\x08\x01"
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as refused:
            list(stream(iter([b""]), timeout=PATIENCE_S))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("alice", "line 1: must be name:key"),
        ("alice:short", "at least 32"),
        (f"# a comment\n\nal ice:{ALICE}", "line 3: must be name:key"),
        (f"alice:{ALICE}\nalice:{BOB}", "line 2: the name or the key of 'alice' is given twice"),
        (f"alice:{ALICE}\nbob:{ALICE}", "line 2: the name or the key of 'bob' is given twice"),
    ],
)
def test_a_wrong_files_error_names_the_line_and_shows_no_key(tmp_path: Path, text: str, words: str) -> None:
    """A wrong file is an error at start-up that names the line and shows no key."""
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        keys_of(None, path)
    assert ALICE not in str(caught.value)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed file adds and removes keys; a wrong or missing one keeps the old keys and is logged once."""
    path, now = tmp_path / "keys", [0.0]
    path.write_text(f"alice:{ALICE}\n")
    keys = FileKeys(path, clock=lambda: now[0])

    def write(text: str) -> None:
        path.write_text(text)
        os.utime(path, ns=(0, int(now[0] * 1e9) + 1))  # a new time even if the test is fast
        now[0] += CHECK_S

    assert keys.check(f"Bearer {ALICE}") == "alice"
    write(f"bob:{BOB}\n")
    assert keys.check(f"Bearer {BOB}") == "bob"
    with pytest.raises(Unauthorized):
        keys.check(f"Bearer {ALICE}")
    with caplog.at_level(logging.ERROR):
        write("broken")
        assert [keys.check(f"Bearer {BOB}") for _ in range(3)] == ["bob"] * 3
        path.unlink()
        now[0] += CHECK_S
        assert keys.check(f"Bearer {BOB}") == "bob"
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 2
    assert BOB not in caplog.text


def test_settings_hide_keys_and_take_one_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings' repr shows no key, keys come from one source, and the client's own variable is not an
    unknown setting."""
    monkeypatch.setenv("FLORENCE_API_KEYS", f"alice:{ALICE}")
    monkeypatch.setenv("FLORENCE_API_KEY", ALICE)
    settings = read_settings()
    assert ALICE not in repr(settings) + str(settings)
    with pytest.raises(SettingsError, match="not both"):
        keys_of("alice:" + ALICE, tmp_path / "keys")
    assert keys_of(None, None) is None
    assert Settings().open_metrics


def test_only_hashes_are_kept(keys: ApiKeys) -> None:
    """Only hashes of keys are kept, so a memory dump of the objects shows no key."""
    assert ALICE not in repr(vars(keys))
    assert set(read_keys([f"a:{ALICE}"], "test")) == {"a"}
