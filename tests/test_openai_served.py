"""The unmodified `openai` client against a real server with the demo checkpoint."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest
from serving import ROOT, Server

from florence.client import Client
from florence.types.tasks import TASKS, Input, Task

pytestmark = pytest.mark.slow

PICTURE = ROOT / "data" / "scene_02.png"
REGION = "10, 10, 120, 120"


@pytest.fixture(scope="module")
def chat(demo_server: Server) -> openai.OpenAI:
    """An `openai` client of the demo server."""
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0)


def messages(text: str) -> list[Any]:
    """A message with this text and the picture."""
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_chat_answers_what_the_typed_endpoint_does(
    demo_server: Server, chat: openai.OpenAI, task: Task
) -> None:
    """The chat and the typed endpoint give the same typed result for each task."""
    behind = {Input.NONE: "", Input.TEXT: "a red circle", Input.REGION: REGION}[task.input]
    reply = chat.chat.completions.create(model="florence2", messages=messages(f"{task.token}{behind}"))
    with Client(demo_server.url) as client:
        text, region = (behind or None, None) if task.input is not Input.REGION else (None, behind)
        answer = client.run(PICTURE, task, text, region=region)
    said: Any = reply.choices[0].message
    assert said.florence2_result == answer.result.model_dump(mode="json")
    assert reply.system_fingerprint == answer.checkpoint
    assert reply.usage is not None
    assert reply.usage.completion_tokens == answer.usage.generated_tokens


def test_a_stream_comes_in_pieces(chat: openai.OpenAI) -> None:
    """The joined pieces are the answer with one beam, in the synchronous and the asyncio client."""
    asked = {"model": "florence2", "messages": messages("caption")}
    whole = chat.chat.completions.create(**asked, extra_body={"num_beams": 1}).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in chat.chat.completions.create(**asked, stream=True)]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(piece or "" for piece in pieces) == whole

    async def stream() -> str:
        async with openai.AsyncOpenAI(base_url=chat.base_url, api_key="none") as client:
            chunks = await client.chat.completions.create(**asked, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == whole


def test_tiles_and_filters_are_options(chat: openai.OpenAI) -> None:
    """Options of the typed endpoints go into `extra_body`."""
    options = {"tiles": "2x2", "min_score": 0.2}
    reply: Any = chat.chat.completions.create(
        model="florence2", messages=messages("<OD>"), extra_body=options
    )
    assert reply.florence2["tiles"] == 4
    assert all(each["score"] >= 0.2 for each in reply.choices[0].message.florence2_result["detections"])
