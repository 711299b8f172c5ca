"""Tests of the tools for agents: the SDK's client in this process, and a fake that answers it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mcp.types as types
from fake_model import RESULT
from mcp import Client
from serving import ROOT, START_S, STOP_S, free_port
from v2 import picture

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask, QuestionOutcome
from florence.errors import Overloaded, RequestError
from florence.mcp.roots import Roots
from florence.mcp.server import PictureServer
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detections, Result

BASE64 = base64.b64encode(picture()).decode()
COMMAND = ["-m", "florence.cli", "mcp"]
Work = Callable[[Client], Any]


class FakeAsk:
    """Record each question and answer it with the canned result of the task's kind, or as `outcome` says."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, PictureQuestion]] = []
        self.outcome: Exception | None = None
        self.empty = False

    def __call__(self, item: PictureItem, questions: Sequence[PictureQuestion]) -> list[QuestionOutcome]:
        (question,) = questions
        self.asked.append((item.read(), question))
        if isinstance(self.outcome, RequestError | Overloaded):
            return [self.outcome]
        if self.outcome is not None:
            raise self.outcome
        return [
            TaskAnswer[Result](
                task=question.task.token,
                result=Detections(detections=[]) if self.empty else RESULT[question.task.kind],
                image_size=ImageSize(width=8, height=6),
                finish_reason="stop",
                usage=Usage(picture_tokens=1, prompt_tokens=1, generated_tokens=1),
                timings=Timings(queue_s=0, encode_s=0, decode_s=0, total_s=0),
                checkpoint="fake",
            )
        ]


def with_client(ask: Ask, work: Work, *folders: Path, local: bool = True) -> Any:
    """Run the work with the SDK's client and return its result."""

    async def run() -> Any:
        server = PictureServer(ask, Roots(folders, local=local))
        async with Client(server.protocol()) as client:
            return await work(client)

    return asyncio.run(run())


def call(ask: FakeAsk, tool: str, *folders: Path, local: bool = True, **arguments: Any) -> Any:
    """Call a tool through the SDK's client and return its result."""
    return with_client(ask, lambda client: client.call_tool(tool, arguments), *folders, local=local)


def told(result: types.CallToolResult) -> str:
    """The text of a tool's result."""
    (content, *_) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


@dataclass(frozen=True)
class Tools:
    """A running `florence mcp --http`."""

    port: int
    pid: int
    log_path: Path


@contextlib.contextmanager
def serving_tools(url: str) -> Iterator[Tools]:
    """Start `florence mcp` over HTTP with a service behind it and the pictures of `data/`."""
    port = free_port()
    command = [sys.executable, *COMMAND, "--url", url, "--http", str(port), "--root", str(ROOT / "data")]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            end = time.monotonic() + START_S
            while "/mcp" not in log.read_text() or not _answers(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield Tools(port, process.pid, log)
        finally:
            process.terminate()
            process.wait(STOP_S)


def _answers(port: int) -> bool:
    """Whether an HTTP server answers on this port."""
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx.HTTPError:
        return False
    return True
