"""The tools for agents, asked by the SDK's client in this process; what answers is a fake."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import mcp.types as types
import pytest
from fake_model import RESULT
from mcp import Client, MCPError
from PIL import Image
from v2 import picture

from florence.answers.told import describe
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import QuestionOutcome
from florence.cli.mcp import read_address
from florence.errors import ImageError, Overloaded, RequestError, SettingsError
from florence.mcp.arguments import PICTURE, schema_of
from florence.mcp.roots import MOST_LISTED, Roots
from florence.mcp.server import LONGEST_SIDE, PictureServer
from florence.mcp.tools import _OF_REGION, TOOLS
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detections, Result
from florence.types.tasks import TASKS

BASE64 = base64.b64encode(picture()).decode()
REGION = [1.0, 1.0, 5.0, 5.0]
Work = Callable[[Client], Any]


class FakeAsk:
    """Notes what is asked and answers with the canned result of the task's kind, or as `outcome` says."""

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


@pytest.fixture
def ask() -> FakeAsk:
    return FakeAsk()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An allowed folder, and a picture beside it that is not allowed."""
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "pictures"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "ü.png").write_bytes(picture())
    (folder / "one.PNG").write_bytes(picture((4, 4)))
    (folder / "notes.txt").write_text("no picture")
    return folder


def with_client(ask: FakeAsk, work: Work, *folders: Path, local: bool = True) -> Any:
    """What the work gives, which gets the SDK's client."""

    async def run() -> Any:
        server = PictureServer(ask, Roots(folders, local=local))
        async with Client(server.protocol()) as client:
            return await work(client)

    return asyncio.run(run())


def call(ask: FakeAsk, tool: str, *folders: Path, local: bool = True, **arguments: Any) -> Any:
    return with_client(ask, lambda client: client.call_tool(tool, arguments), *folders, local=local)


def told(result: types.CallToolResult) -> str:
    (content, *_) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


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
    """Answers are text, structured content, and a drawn picture where there are places to draw."""
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
    """All but the two that an agent has no use for beside `find`."""
    cases: list[tuple[str, dict[str, Any]]] = [
        *(("describe", {"detail": each}) for each in ("short", "detailed", "paragraph")),
        *(("find", each) for each in ({}, {"what": "a"}, {"what": "a", "each_phrase": True})),
        *(("read", {"places": each}) for each in (False, True)),
        *(("segment", each) for each in ({"what": "a"}, {"region": REGION})),
        *(("ask_region", {"region": REGION, "question": each}) for each in _OF_REGION),
    ]
    tools = {tool.name: tool for tool in TOOLS}
    asked = {tools[name].question(tools[name].arguments(**given)).task.token for name, given in cases}
    assert asked == set(TASKS) - {"<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>"}


def test_the_drawn_picture_is_a_small_png(ask: FakeAsk) -> None:
    """It can be left out, and asked for where the answer is a text."""
    file = BytesIO()
    Image.new("RGB", (3000, 1000), "green").save(file, "PNG")
    large = base64.b64encode(file.getvalue()).decode()
    image = call(ask, "find", base64=large).content[1]
    assert isinstance(image, types.ImageContent)
    assert image.mime_type == "image/png"
    drawn = Image.open(BytesIO(base64.b64decode(image.data)))
    assert (drawn.format, max(drawn.size)) == ("PNG", LONGEST_SIDE)
    assert len(call(ask, "find", base64=BASE64, draw=False).content) == 1
    assert len(call(ask, "describe", base64=BASE64, draw=True).content) == 2


def test_nothing_found_is_said(ask: FakeAsk) -> None:
    ask.empty = True
    assert told(call(ask, "find", base64=BASE64)) == "nothing was found"


def test_a_picture_comes_in_each_way(ask: FakeAsk, folder: Path) -> None:
    """A path, relative or not; base64 with white space, or as a data URI; a listed resource; a file's URI;
    the contents of a resource of any server."""
    file = folder / "a b" / "ü.png"
    ways: list[dict[str, Any]] = [
        {"path": str(file)},
        {"path": "a b/ü.png"},
        {"base64": BASE64[:20] + "\n " + BASE64[20:]},
        {"base64": f"data:image/png;base64,{BASE64}"},
        {"resource": f"data:image/png;base64,{BASE64}"},
        {"resource": "picture:///1/a%20b/%C3%BC.png"},
        {"resource": file.as_uri()},
        {"resource": {"uri": "other://7", "mimeType": "image/png", "blob": BASE64}},
    ]
    for way in ways:
        result = call(ask, "describe", folder, **way)
        assert not result.is_error, told(result)
    assert {data for data, _ in ask.asked} == {picture()}
    assert len(ask.asked) == len(ways)


def test_no_path_leads_out_of_the_folders(ask: FakeAsk, folder: Path) -> None:
    """Neither upwards, nor by a link, nor by a URI; and what is not there is refused in the same words."""
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.png")
    secret = folder.parent / "secret.png"
    ways = [
        {"path": str(secret)},
        {"path": "../secret.png"},
        {"path": "a b/../../secret.png"},
        {"path": "link.png"},
        {"path": "up/secret.png"},
        {"path": "pipe.png"},
        {"path": "."},
        {"path": ""},
        {"path": "nothing.png"},
        {"path": "a\0.png"},
        {"path": "x" * 5000},
        {"path": "/etc/passwd"},
        {"path": f"{folder}-beside/x.png"},
        {"resource": secret.as_uri()},
        {"resource": "picture:///1/../secret.png"},
        {"resource": "picture:///1/%2e%2e/secret.png"},
        {"resource": f"picture:///1/{secret}"},
        {"resource": "picture:///2/one.PNG"},
        {"resource": "picture:///0/one.PNG"},
        {"resource": "picture:///1/"},
        {"resource": "https://example.org/x.png"},
        {"resource": "http://[x"},
        {"resource": "picture:///1/%ff"},
    ]
    for way in ways:
        result = call(ask, "describe", folder, **way)
        assert result.is_error, way
        assert len(told(result)) < 300
    assert ask.asked == []
    reasons = {
        told(call(ask, "describe", folder, path=path)).replace(path, "")
        for path in (str(secret), f"{secret}x")
    }
    assert len(reasons) == 1


def test_a_path_needs_a_folder_and_stdio(ask: FakeAsk, folder: Path) -> None:
    """Without a folder no path is read; over HTTP none is, and no tool names one; listed pictures are."""
    assert "--root FOLDER" in told(call(ask, "describe", path=str(folder / "one.PNG")))
    for way in ({"path": "one.PNG"}, {"resource": (folder / "one.PNG").as_uri()}):
        assert "over stdio" in told(call(ask, "describe", folder, local=False, **way))
    assert not call(ask, "describe", folder, local=False, resource="picture:///1/one.PNG").is_error
    tools = with_client(ask, lambda client: client.list_tools(), folder, local=False).tools
    assert all("path" not in tool.input_schema["properties"] for tool in tools)
    with pytest.raises(SettingsError, match="is no folder"):
        Roots([folder / "notes.txt"], local=True)


def test_pictures_are_listed_and_read(ask: FakeAsk, folder: Path, tmp_path: Path) -> None:
    """Each listed resource is read under its URI, and is a tool's picture; other files are not listed."""

    async def work(client: Client) -> list[tuple[str, bytes]]:
        listed = (await client.list_resources()).resources
        read = [await client.read_resource(each.uri) for each in listed]
        with pytest.raises(MCPError, match="not one of this server's"):
            await client.read_resource("picture:///7/x.png")
        return [
            (each.name, base64.b64decode(one.contents[0].blob))
            for each, one in zip(listed, read, strict=True)
        ]

    (folder / "up").symlink_to(tmp_path)
    assert with_client(ask, work, folder) == [("one.PNG", picture((4, 4))), ("ü.png", picture())]
    assert with_client(ask, lambda client: client.list_resources()).resources == []
    for number in range(MOST_LISTED):
        (folder / f"{number}.png").touch()
    assert len(with_client(ask, lambda client: client.list_resources(), folder).resources) == MOST_LISTED


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("describe", {"base64": None}, "a picture is needed, as one of path, base64, resource; got none"),
        ("describe", {"path": "x.png"}, "got path and base64"),
        ("describe", {"base64": "!!"}, "not valid base64"),
        ("describe", {"base64": ""}, "empty"),
        ("describe", {"detail": "poem"}, "detail: "),
        ("find", {"colour": "red"}, "unknown argument 'colour'; there are path, base64"),
        ("find", {"each_phrase": True}, "needs a sentence"),
        ("find", {"tiles": "many"}, "tiles must be off, auto or a grid"),
        ("find", {"min_score": 7}, "min_score"),
        ("find", {"what": "x" * 70_000}, "what: "),
        ("segment", {}, "one of what"),
        ("segment", {"what": "a", "region": REGION}, "one of what"),
        ("ask_region", {}, "region is missing"),
        ("ask_region", {"region": [1, 2]}, "region: "),
    ],
)
def test_wrong_arguments_are_a_tools_error(
    ask: FakeAsk, tool: str, arguments: dict[str, Any], said: str
) -> None:
    """In words from which a model can mend its call, and short."""
    result = call(ask, tool, **{"base64": BASE64, **arguments})
    assert result.is_error
    assert said in told(result)
    assert len(told(result)) < 300


def test_errors_of_what_answers(ask: FakeAsk) -> None:
    """A foreseen one is told, another one is in the log only; an unknown tool is the protocol's error."""
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
    """All tools together take less than 1500 tokens of a model, at four characters a token; no schema has
    a title or a null; one of the ways to give a picture is all that is common."""
    tools = with_client(ask, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["describe", "find", "read", "segment", "ask_region"]
    described = json.dumps([(tool.name, tool.description, tool.input_schema) for tool in tools])
    assert len(described) < 6000
    assert '"title"' not in described
    assert '"null"' not in described
    for tool in TOOLS:
        assert len(tool.description) < 150
        assert set(PICTURE) <= set(schema_of(tool.arguments, local=True)["properties"])


def test_addresses() -> None:
    """A port, or a host and a port."""
    assert read_address("8080") == ("127.0.0.1", 8080)
    assert read_address("0.0.0.0:9") == ("0.0.0.0", 9)
    assert read_address("[::1]:8080") == ("::1", 8080)
    for wrong in ("", "x", "localhost", "0", "70000", "localhost:", "-1"):
        with pytest.raises(SettingsError, match="HOST"):
            read_address(wrong)


def test_an_unreadable_file_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        Roots([folder], local=True).read_path("one.PNG")
