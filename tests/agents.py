"""Tests of the tools for agents: the SDK's client in this process, and a fake that answers it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mcp.types as types
from fake_model import RESULT
from mcp import Client
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
