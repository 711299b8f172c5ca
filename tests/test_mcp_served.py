"""`florence mcp` as agents start it, called by the SDK's client: over stdio with a model, over HTTP with a
service."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mcp.types as types
import pytest
from agents import COMMAND, serving_tools
from mcp import Client, StdioServerParameters, stdio_client
from serving import ROOT, Server

from florence.client import Client as ServiceClient

pytestmark = pytest.mark.slow

DATA = ROOT / "data"
PICTURE = DATA / "scene_02.png"


def text_of(result: types.CallToolResult) -> str:
    """The text that a result begins with."""
    (content, *_) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


def test_over_stdio_with_a_model(demo_server: Server) -> None:
    """Over stdio, paths in the folder are read, the answers are the service's, and stdout has nothing
    else."""
    arguments = [*COMMAND, "--model", "demo", "--root", str(DATA)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLORENCE_DTYPE": "float32", "HF_HUB_OFFLINE": "1"}
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment)

    async def work() -> dict[str, types.CallToolResult]:
        async with Client(stdio_client(parameters)) as client:
            listed = {resource.name: resource.uri for resource in (await client.list_resources()).resources}
            asks: dict[str, tuple[str, dict[str, Any]]] = {
                "path": ("find", {"path": PICTURE.name}),
                "resource": ("describe", {"resource": listed[PICTURE.name]}),
                "region": ("ask_region", {"path": str(PICTURE), "region": [40, 140, 110, 212]}),
                "tiles": ("read", {"path": str(PICTURE), "tiles": "2x1", "places": True}),
                "outside": ("describe", {"path": str(ROOT / "docs" / "playground.png")}),
            }
            return {name: await client.call_tool(*asked) for name, asked in asks.items()}

    results = asyncio.run(work())
    with ServiceClient(demo_server.url) as client:
        found, said = client.object_detection(PICTURE), client.caption(PICTURE)
    assert [name for name, result in results.items() if result.is_error] == ["outside"]
    boxes = [each["box"] for each in results["path"].structured_content["result"]["detections"]]
    assert boxes == [list(each.box) for each in found.detections]
    assert isinstance(results["path"].content[1], types.ImageContent)
    assert text_of(results["resource"]) == said.text
    assert results["tiles"].structured_content["tiles"] == 2


@pytest.fixture(scope="module")
def over_http(demo_server: Server) -> Iterator[str]:
    """The URL of the tools over HTTP, with the demo's service behind them."""
    with serving_tools(demo_server.url) as tools:
        yield f"http://127.0.0.1:{tools.port}/mcp"


def test_over_http_with_a_service(demo_server: Server, over_http: str) -> None:
    """Over HTTP, two clients get answers for base64 and listed pictures, and the service's own errors."""

    async def work() -> list[types.CallToolResult]:
        async with Client(over_http) as one, Client(over_http) as other:
            data = base64.b64encode(PICTURE.read_bytes()).decode()
            (resource,) = [
                each.uri for each in (await other.list_resources()).resources if each.name == PICTURE.name
            ]
            return await asyncio.gather(
                one.call_tool("describe", {"base64": data}),
                other.call_tool("describe", {"resource": resource}),
                other.call_tool("describe", {"path": str(PICTURE)}),
                one.call_tool("ask_region", {"base64": data, "region": [0, 0, 9000, 9000]}),
                one.call_tool("describe", {"base64": base64.b64encode(b"no picture").decode()}),
                one.call_tool("describe", {"url": "https://pictures.example/a.png"}),
            )

    first, second, path, region, broken, url = asyncio.run(work())
    with ServiceClient(demo_server.url) as client:
        assert text_of(first) == text_of(second) == client.caption(PICTURE).text
    assert path.is_error
    assert "inside the picture" in text_of(region)
    assert broken.is_error
    assert "FLORENCE_IMAGE_HOSTS" in text_of(url)  # the service's setting, which allows no host here


def test_a_page_of_another_origin_is_refused(over_http: str) -> None:
    """A web page can't reach the tools of the user's machine (DNS rebinding)."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"Accept": "application/json, text/event-stream"}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert httpx.post(over_http, json=body, headers={**accept, **headers}, timeout=60).status_code in (
            403,
            421,
        )


def test_a_stream_on_which_nothing_comes_is_refused(over_http: str) -> None:
    """A GET for a stream is a 405, since its connection would stay open without use and delay the stop."""
    reply = httpx.get(over_http, headers={"Accept": "text/event-stream"}, timeout=60)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_the_command_says_what_is_wrong(florence: Any, tmp_path: Path) -> None:
    """A missing folder, a wrong port and a missing service give an error and its exit status."""
    assert florence("mcp", "--url", "http://127.0.0.1:9", "--root", tmp_path / "no")[0] == 2
    assert florence("mcp", "--url", "http://127.0.0.1:9", "--http", "x")[0] == 2
    status, out, error = florence("mcp", "--url", "http://127.0.0.1:9")
    assert (status, out) == (1, "")
    assert "127.0.0.1:9" in error
