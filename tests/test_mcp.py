"""The tools for agents, called by the SDK's client in this process, with a fake that answers."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from threading import Event, Semaphore
from typing import Any

import anyio
import anyio.to_thread
import mcp.types as types
import pytest
from agents import BASE64, FakeAsk, call, told, with_client
from fake_model import RESULT
from mcp import Client, MCPError
from PIL import Image
from v2 import picture
from waiting import PATIENCE_S

from florence.answers.description import describe
from florence.bulk.run import QuestionOutcome
from florence.cli.mcp import read_address
from florence.errors import Overloaded, RequestError, SettingsError
from florence.mcp.arguments import PICTURE, schema_of
from florence.mcp.server import MAX_CALLS, MAX_SIDE
from florence.mcp.tools import OF_REGION, TOOLS
from florence.types.tasks import TASKS

REGION = [1.0, 1.0, 5.0, 5.0]


@pytest.fixture
def ask() -> FakeAsk:
    """A fake that answers and records the questions."""
    return FakeAsk()


@pytest.mark.parametrize(
    ("tool", "arguments", "token", "given", "options"),
    [
        ("describe", {}, "<CAPTION>", None, {}),
        ("describe", {"detail": "detailed"}, "<DETAILED_CAPTION>", None, {}),
        ("describe", {"detail": "paragraph"}, "<MORE_DETAILED_CAPTION>", None, {}),
        ("find", {}, "<OD>", None, {}),
        ("find", {"tiles": "2x2", "min_score": 0.5}, "<OD>", None, {"tiles": "2x2", "min_score": 0.5}),
        ("find", {"what": "a car"}, "<OPEN_VOCABULARY_DETECTION>", "a car", {}),
        (
            "find",
            {"what": "a car and a dog", "each_phrase": True},
            "<CAPTION_TO_PHRASE_GROUNDING>",
            "a car and a dog",
            {},
        ),
        ("read", {}, "<OCR>", None, {}),
        ("read", {"places": True, "tiles": "auto"}, "<OCR_WITH_REGION>", None, {"tiles": "auto"}),
        ("segment", {"what": "a car"}, "<REFERRING_EXPRESSION_SEGMENTATION>", "a car", {}),
        ("segment", {"region": REGION}, "<REGION_TO_SEGMENTATION>", "1.0, 1.0, 5.0, 5.0", {}),
        ("ask_region", {"region": REGION}, "<REGION_TO_DESCRIPTION>", "1.0, 1.0, 5.0, 5.0", {}),
        (
            "ask_region",
            {"region": REGION, "question": "text"},
            "<REGION_TO_OCR>",
            "1.0, 1.0, 5.0, 5.0",
            {},
        ),
        (
            "ask_region",
            {"region": REGION, "question": "category"},
            "<REGION_TO_CATEGORY>",
            "1.0, 1.0, 5.0, 5.0",
            {},
        ),
    ],
)
def test_each_tool_asks_its_task(
    ask: FakeAsk, tool: str, arguments: dict[str, Any], token: str, given: str | None, options: dict[str, Any]
) -> None:
    """A tool asks its task; its answer is text, structured content, and a drawing if it has locations."""
    result = call(ask, tool, base64=BASE64, **arguments)
    assert not result.is_error, told(result)
    ((data, question),) = ask.asked
    assert data == picture()
    assert (question.task.token, question.given, dict(question.options)) == (token, given, options)
    answer = RESULT[TASKS[token].kind]
    assert told(result) == "\n".join(describe(answer))
    assert result.structured_content["result"] == answer.model_dump(mode="json")
    assert result.structured_content["image_size"] == {"width": 8, "height": 6}
    assert len(result.content) == 1 + bool(answer.annotations())


def test_each_task_has_a_tool() -> None:
    """All tasks have a tool except two, which `find` covers."""
    cases: list[tuple[str, dict[str, Any]]] = [
        *(("describe", {"detail": each}) for each in ("short", "detailed", "paragraph")),
        *(("find", each) for each in ({}, {"what": "a"}, {"what": "a", "each_phrase": True})),
        *(("read", {"places": each}) for each in (False, True)),
        *(("segment", each) for each in ({"what": "a"}, {"region": REGION})),
        *(("ask_region", {"region": REGION, "question": each}) for each in OF_REGION),
    ]
    tools = {tool.name: tool for tool in TOOLS}
    asked = {tools[name].question(tools[name].arguments(**given)).task.token for name, given in cases}
    assert asked == set(TASKS) - {"<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>"}


def test_the_drawn_picture_is_a_small_png(ask: FakeAsk) -> None:
    """The drawing is a PNG of limited size; `draw` adds it to a text answer or leaves it out."""
    file = BytesIO()
    Image.new("RGB", (3000, 1000), "green").save(file, "PNG")
    large = base64.b64encode(file.getvalue()).decode()
    image = call(ask, "find", base64=large).content[1]
    assert isinstance(image, types.ImageContent)
    assert image.mime_type == "image/png"
    drawn = Image.open(BytesIO(base64.b64decode(image.data)))
    assert (drawn.format, max(drawn.size)) == ("PNG", MAX_SIDE)
    assert len(call(ask, "find", base64=BASE64, draw=False).content) == 1
    assert len(call(ask, "describe", base64=BASE64, draw=True).content) == 2


def test_nothing_found_is_said(ask: FakeAsk) -> None:
    """An empty answer says that nothing was found."""
    ask.empty = True
    assert told(call(ask, "find", base64=BASE64)) == "nothing was found"


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("describe", {"base64": None}, "a picture is needed, as one of path, base64, resource; got none"),
        ("describe", {"path": "x.png"}, "got path and base64"),
        ("describe", {"base64": "!!"}, "not valid base64"),
        ("describe", {"base64": ""}, "empty"),
        ("describe", {"detail": "poem"}, "detail: "),
        ("find", {"colour": "red"}, "unknown argument 'colour'; the arguments are path, base64"),
        ("find", {"each_phrase": True}, "needs a sentence"),
        ("find", {"tiles": "many"}, "tiles must be off, auto or a grid"),
        ("find", {"min_score": 7}, "min_score"),
        ("find", {"what": "x" * 70_000}, "what: "),
        ("segment", {}, "needs either what"),
        ("segment", {"what": "a", "region": REGION}, "needs either what"),
        ("ask_region", {}, "region is missing"),
        ("ask_region", {"region": [1, 2]}, "region: "),
    ],
)
def test_wrong_arguments_are_a_tools_error(
    ask: FakeAsk, tool: str, arguments: dict[str, Any], said: str
) -> None:
    """Wrong arguments are the tool's error, short and clear enough for a model to correct its call."""
    result = call(ask, tool, **{"base64": BASE64, **arguments})
    assert result.is_error
    assert said in told(result)
    assert len(told(result)) < 300


def test_calls_of_clients_that_left_are_bounded() -> None:
    """The calls of clients that left end by themselves, and those that wait for a thread never begin."""
    begun, may_end = Semaphore(0), Event()
    count = 0

    def slow(_: object, __: object) -> list[QuestionOutcome]:
        nonlocal count
        count += 1
        begun.release()
        may_end.wait(PATIENCE_S)
        return [RequestError("too late")]

    async def leave(client: Client) -> None:
        async with anyio.create_task_group() as calls:
            for _ in range(MAX_CALLS + 5):
                calls.start_soon(client.call_tool, "describe", {"base64": BASE64})
            for _ in range(MAX_CALLS):
                assert await anyio.to_thread.run_sync(begun.acquire, True, PATIENCE_S)
            calls.cancel_scope.cancel()
        may_end.set()
        await client.call_tool("describe", {"base64": BASE64})

    with_client(slow, leave)
    assert count == MAX_CALLS + 1


def test_errors_of_what_answers(ask: FakeAsk) -> None:
    """An expected error is returned, another one appears only in the log, and an unknown tool is the
    protocol's error."""
    ask.outcome = Overloaded("the queue is full")
    assert told(call(ask, "describe", base64=BASE64)) == "the queue is full"
    ask.outcome = ValueError("a secret of the program")
    result = call(ask, "describe", base64=BASE64)
    assert result.is_error
    assert "secret" not in told(result)

    async def paint(client: Client) -> None:
        with pytest.raises(MCPError, match="unknown tool 'paint'"):
            await client.call_tool("paint", {})

    with_client(ask, paint)


def test_what_agents_read_is_short_and_right(ask: FakeAsk) -> None:
    """All tools together take less than 1500 tokens (at four characters each); no schema has a title or a
    null, and all share the ways to give a picture."""
    tools = with_client(ask, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["describe", "find", "read", "segment", "ask_region"]
    described = json.dumps([(tool.name, tool.description, tool.input_schema) for tool in tools])
    assert len(described) < 6000
    assert '"title"' not in described
    assert '"null"' not in described
    for tool in TOOLS:
        assert len(tool.description) < 150
        assert set(PICTURE) <= set(schema_of(tool.arguments, PICTURE)["properties"])


def test_addresses() -> None:
    """An address is a port, or a host and a port."""
    assert read_address("8080") == ("127.0.0.1", 8080)
    assert read_address("0.0.0.0:9") == ("0.0.0.0", 9)
    assert read_address("[::1]:8080") == ("::1", 8080)
    for wrong in ("", "x", "localhost", "0", "70000", "localhost:", "-1"):
        with pytest.raises(SettingsError, match="HOST"):
            read_address(wrong)
