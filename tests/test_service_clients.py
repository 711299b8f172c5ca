"""Triton's own clients and curl, unmodified, against a real server process with the demo checkpoint."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from serving import ROOT, Server
from tritonclient.utils import InferenceServerException
from waiting import PATIENCE_S

pytestmark = pytest.mark.slow

PICTURE = (ROOT / "data" / "scene_02.png").read_bytes()
GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"


@pytest.fixture(scope="module")
def server(demo_server: Server) -> Server:
    """The demo server."""
    return demo_server


@pytest.fixture
def http(server: Server) -> str:
    """The server's host and port, as Triton's clients expect them."""
    return server.url.removeprefix("http://")


@pytest.fixture
def grpc(server: Server) -> str:
    """The host and port of gRPC."""
    return f"127.0.0.1:{server.grpc_port}"


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    """The caption that a client of the replaced deployment gets."""
    client = over_http.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        text = json.loads(text_of(client.infer("florence2", inputs(over_http, binary=False))))["<CAPTION>"]
    finally:
        client.close()
    assert len(text) > 10
    return str(text)


def inputs(
    module: Any, task: str = "<CAPTION>", text: str | None = None, *, raw: bool = False, binary: bool = True
) -> list[Any]:
    """Input tensors as numpy arrays; with `raw` the picture's own bytes instead of base64."""
    values = [
        ("INPUT_IMAGE", PICTURE if raw else base64.b64encode(PICTURE)),
        ("TASK_PROMPT", task.encode()),
        *([] if text is None else [("TEXT_PROMPT", text.encode())]),
    ]
    made = []
    for name, value in values:
        tensor = module.InferInput(name, [1, 1], "BYTES")
        options = {"binary_data": binary} if "http" in module.__name__ else {}
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_), **options)
        made.append(tensor)
    return made


def text_of(result: Any) -> str:
    """The JSON text in a result."""
    (text,) = result.as_numpy("PARSED_JSON").reshape(-1)
    return text.decode() if isinstance(text, bytes) else str(text)


def caption_of(result: Any) -> str:
    """The caption in a result."""
    return str(json.loads(text_of(result))["<CAPTION>"])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_http_gives_the_caption(http: str, expected: str, raw: bool, compression: str | None) -> None:
    """HTTP gives the caption for base64 and raw pictures in binary tensors, compressed or not."""
    client = over_http.InferenceServerClient(http)
    try:
        result = client.infer(
            "florence2",
            inputs(over_http, raw=raw),
            request_id="h",
            outputs=[over_http.InferRequestedOutput("PARSED_JSON", binary_data=True)],
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
            parameters={"num_beams": 3},
            timeout=60_000_000,
            priority=1,
        )
        assert caption_of(result) == expected
        assert result.get_response()["id"] == "h"
    finally:
        client.close()


def test_http_describes_server_and_model(http: str) -> None:
    """HTTP gives state, metadata, configuration, statistics and index."""
    client = over_http.InferenceServerClient(http)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("florence2", "1")
        assert not client.is_model_ready("nope")
        assert "statistics" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("florence2")["inputs"][0]["shape"] == [-1, 1]
        assert client.get_model_config("florence2")["max_batch_size"] == 36
        assert client.get_inference_statistics("florence2")["model_stats"][0]["name"] == "florence2"
        assert client.get_model_repository_index()[0]["state"] == "READY"
    finally:
        client.close()


def test_http_async_infer_and_aio(http: str, expected: str) -> None:
    """The asynchronous HTTP clients, with greenlets and asyncio, get concurrent answers."""
    client = over_http.InferenceServerClient(http, concurrency=4)
    try:
        pending = [client.async_infer("florence2", inputs(over_http), request_id=str(n)) for n in range(4)]
        assert [caption_of(one.get_result()) for one in pending] == [expected] * 4
    finally:
        client.close()

    async def ask() -> list[Any]:
        async with over_http_aio.InferenceServerClient(http) as client:
            assert await client.is_model_ready("florence2")
            asked = (client.infer("florence2", inputs(over_http), request_id=str(n)) for n in range(4))
            return await asyncio.gather(*asked)

    assert [caption_of(result) for result in asyncio.run(ask())] == [expected] * 4


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_grpc_gives_the_caption(grpc: str, expected: str, raw: bool, compression: str | None) -> None:
    """gRPC gives the caption like HTTP, and state and configuration."""
    with over_grpc.InferenceServerClient(grpc) as client:
        assert client.is_server_live()
        assert client.is_model_ready("florence2")
        assert not client.is_model_ready("nope")
        assert client.get_model_config("florence2").config.max_batch_size == 36
        result = client.infer(
            "florence2",
            inputs(over_grpc, raw=raw),
            request_id="g",
            outputs=[over_grpc.InferRequestedOutput("PARSED_JSON")],
            compression_algorithm=compression,
            client_timeout=PATIENCE_S,
            timeout=60_000_000,
        )
        assert caption_of(result) == expected
        assert result.get_response().id == "g"


def test_grpc_async_and_stream(grpc: str, expected: str) -> None:
    """Callbacks get concurrent answers; a stream answers in order and continues after an error."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def keep(result: Any, error: Any) -> None:
        answers.put((result, error))

    with over_grpc.InferenceServerClient(grpc) as client:
        for _ in range(4):
            client.async_infer("florence2", inputs(over_grpc), keep)
        for _ in range(4):
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None
            assert caption_of(result) == expected
        client.start_stream(keep)
        for task in ("<CAPTION>", "<NOPE>", "<CAPTION>"):
            client.async_stream_infer("florence2", inputs(over_grpc, task), enable_empty_final_response=True)
        outcomes = [answers.get(timeout=PATIENCE_S) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in outcomes] == [True, False, True]
    assert "unknown task" in str(outcomes[1][1])
    assert caption_of(outcomes[2][0]) == expected


def test_grpc_aio_and_its_stream(grpc: str, expected: str) -> None:
    """The asyncio gRPC client and its stream get their answers."""

    async def ask() -> list[str]:
        async with over_grpc_aio.InferenceServerClient(grpc) as client:
            assert await client.is_server_ready()
            asked = (client.infer("florence2", inputs(over_grpc)) for _ in range(4))
            captions = [caption_of(result) for result in await asyncio.gather(*asked)]

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for number in range(3):
                    yield {
                        "model_name": "florence2",
                        "inputs": inputs(over_grpc),
                        "request_id": str(number),
                    }

            async for result, error in client.stream_infer(requests()):
                assert error is None
                captions.append(caption_of(result))
            return captions

    assert asyncio.run(ask()) == [expected] * 7


def test_errors_are_exceptions_with_status_and_words(http: str, grpc: str) -> None:
    """An error is an exception with the status and a message."""
    over_http_client = over_http.InferenceServerClient(http)
    try:
        with pytest.raises(InferenceServerException) as caught:
            over_http_client.infer("florence2", inputs(over_http)[:1])
        assert caught.value.status() == "400"
        assert "missing required input(s) ['TASK_PROMPT']" in caught.value.message()
        with pytest.raises(InferenceServerException) as caught:
            over_http_client.infer("florence2", inputs(over_http, GROUNDING))
        assert "needs a text" in caught.value.message()
    finally:
        over_http_client.close()
    with over_grpc.InferenceServerClient(grpc) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("nope", inputs(over_grpc))
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException) as caught:
            client.infer("florence2", inputs(over_grpc), timeout=1000)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        with pytest.raises(InferenceServerException) as caught:
            client.infer("florence2", inputs(over_grpc), client_timeout=0.001)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        grounded = client.infer("florence2", inputs(over_grpc, GROUNDING, "a heart"))
        assert list(json.loads(text_of(grounded))) == [GROUNDING]


def curl(*arguments: str) -> str:
    """The output of curl with these arguments."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = ["curl", "--silent", "--show-error", "--max-time", "60", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_curl_sends_a_picture_in_binary(server: Server, expected: str, tmp_path: Path) -> None:
    """curl can send a JSON header followed by the picture's own bytes."""
    picture = len(PICTURE).to_bytes(4, "little") + PICTURE
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "INPUT_IMAGE",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(picture)},
                },
                {"name": "TASK_PROMPT", "shape": [1], "datatype": "BYTES", "data": ["<CAPTION>"]},
            ]
        }
    ).encode()
    body = tmp_path / "body"
    body.write_bytes(head + picture)
    answer = curl(
        "--data-binary",
        f"@{body}",
        "-H",
        f"Inference-Header-Content-Length: {len(head)}",
        f"{server.url}/v2/models/florence2/infer",
    )
    assert json.loads(json.loads(answer)["outputs"][0]["data"][0]) == {"<CAPTION>": expected}


def test_curl_reads_a_stream_of_tokens(server: Server, tmp_path: Path) -> None:
    """The joined texts of a stream are the answer, which generate gives too."""
    body = tmp_path / "body"
    picture = base64.b64encode(PICTURE).decode()
    body.write_text(json.dumps({"INPUT_IMAGE": picture, "TASK_PROMPT": "<CAPTION>", "num_beams": 1}))
    url = f"{server.url}/v2/models/florence2/generate"
    lines = curl("--no-buffer", "--data-binary", f"@{body}", url + "_stream").split("\n\n")[:-1]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len(events) > 4
    assert events[-1] == json.loads(curl("--data-binary", f"@{body}", url))
    whole = json.loads(events[-1]["PARSED_JSON"])["<CAPTION>"]
    assert "".join(event["text_output"] for event in events[:-1]) == whole
