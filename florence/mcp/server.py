"""The MCP server: lists tools and pictures, carries out calls, over stdio or streamable HTTP.

Knows the SDK's types. Which task a call asks is in `tools`; the function that answers is an argument.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import mimetypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any, Final

import anyio
import anyio.to_thread
import mcp.types as types
import uvicorn
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from florence import __version__
from florence.answers.description import describe
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask
from florence.errors import FlorenceError
from florence.images.decode import open_image
from florence.images.limits import DEFAULT_LIMITS
from florence.images.seen import SEEN
from florence.mcp.arguments import PICTURE, read_arguments, schema_of
from florence.mcp.roots import Roots
from florence.mcp.tools import TOOLS, PictureTool
from florence.types.answer import TaskAnswer

logger = logging.getLogger("florence.mcp")

AskUrl = Callable[[str, PictureQuestion], TaskAnswer[Any]]
"""Answers a question about the picture at a URL. Raises FlorenceError."""
MAX_SIDE: Final = 1024
"""Pixels of a drawn picture's longer side: agents pay by the pixel."""
MAX_BODY_BYTES: Final = 64 * 2**20
MAX_CALLS: Final = 32
"""Calls that are answered at a time, also for clients that have left; more wait."""
GRACE_S: Final = 30
INSTRUCTIONS: Final = "Tools about one picture each. Boxes and regions are x1, y1, x2, y2 in its pixels."
_INTERNAL: Final = "the tool failed; the server's log says more"


class PictureServer:
    """The server's handlers. `ask`: answers questions about a picture, from any thread. `roots`: the folders
    whose pictures may be named. `ask_url`: answers a question about a picture at a URL; None where URLs are
    not fetched."""

    def __init__(self, ask: Ask, roots: Roots, ask_url: AskUrl | None = None) -> None:
        self._ask, self._roots, self._ask_url = ask, roots, ask_url
        left_out = ([] if roots.local else ["path"]) + ([] if ask_url else ["url"])
        self._ways = [way for way in PICTURE if way not in left_out]
        self._tools = {tool.name: tool for tool in TOOLS}
        self._threads = ThreadPoolExecutor(MAX_CALLS, "florence-mcp")

    def protocol(self) -> Server[Any]:
        """The SDK's server with these handlers."""
        return Server(
            "florence",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
        )

    async def _list_tools(self, _: object, __: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[self._described(tool) for tool in TOOLS])

    def _described(self, tool: PictureTool) -> types.Tool:
        return types.Tool(
            name=tool.name,
            description=tool.description,
            input_schema=schema_of(tool.arguments, self._ways),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )

    async def _call_tool(self, _: object, call: types.CallToolRequestParams) -> types.CallToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            raise MCPError(types.INVALID_PARAMS, f"unknown tool {call.name[:60]!r}; the tools are {known}")
        work = partial(self._answer, tool, call.arguments)
        try:
            return await asyncio.wrap_future(self._threads.submit(work))
        except FlorenceError as error:
            return _failed(str(error))
        except Exception:
            logger.exception("%s failed unexpectedly", tool.name)
            return _failed(_INTERNAL)

    def _answer(self, tool: PictureTool, sent: dict[str, Any] | None) -> types.CallToolResult:
        """Read the picture, ask, and draw. Runs in a thread; raises FlorenceError."""
        given = read_arguments(tool.arguments, sent)
        question = tool.question(given)
        given.check_picture(self._ways)
        picture: bytes | None = None
        if given.url is not None and self._ask_url is not None:
            answer = self._ask_url(given.url, question)
        else:
            data = picture = given.picture(self._roots)
            (outcome,) = self._ask(PictureItem("the picture", lambda: data), [question])
            if isinstance(outcome, FlorenceError):
                raise outcome
            answer = outcome
        text = "\n".join(describe(answer.result)) or "nothing was found"
        content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
        wanted = answer.result.annotations() if given.draw is None else given.draw
        if wanted and picture is not None:
            drawn = base64.b64encode(_draw(answer, picture)).decode()
            content.append(types.ImageContent(type="image", data=drawn, mime_type="image/png"))
        said = answer.model_dump(mode="json", include=set(TaskAnswer.model_fields))
        return types.CallToolResult(content=content, structured_content=said)

    async def _list_resources(self, _: object, __: object) -> types.ListResourcesResult:
        found = await anyio.to_thread.run_sync(lambda: list(self._roots.uris()))
        resources = [
            types.Resource(uri=uri, name=file.name, mime_type=_mime_type(file.name)) for uri, file in found
        ]
        return types.ListResourcesResult(resources=resources)

    async def _read_resource(
        self, _: object, wanted: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        try:
            data = await anyio.to_thread.run_sync(self._roots.read_uri, wanted.uri)
        except FlorenceError as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from None
        blob = base64.b64encode(data).decode()
        contents = types.BlobResourceContents(uri=wanted.uri, blob=blob, mime_type=_mime_type(wanted.uri))
        return types.ReadResourceResult(contents=[contents])


class NoStream:
    """Answers 405 to GET, as the protocol says for a server that sends nothing by itself. The SDK would keep
    the connection open, for a stream on which nothing ever comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            refusal = PlainTextResponse("Method Not Allowed: send a POST to /mcp", 405, {"Allow": "POST"})
            return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


def http_app(server: PictureServer, host: str) -> Starlette:
    """The ASGI application: streamable HTTP at /mcp, without sessions. `host`: the address that is listened
    on; for a loopback address the SDK refuses requests with foreign Host or Origin headers."""
    app = server.protocol().streamable_http_app(
        host=host, stateless_http=True, max_request_body_size=MAX_BODY_BYTES
    )
    app.add_middleware(NoStream)
    return app


def serve_stdio(server: PictureServer) -> None:
    """Serve until the client closes standard input."""

    async def serve() -> None:
        protocol = server.protocol()
        async with stdio_server() as (incoming, outgoing):
            await protocol.run(incoming, outgoing, protocol.create_initialization_options())

    anyio.run(serve)


def serve_http(server: PictureServer, host: str, port: int) -> None:
    """Serve until the process is signalled to stop; requests under way then have `GRACE_S` seconds."""
    app = http_app(server, host)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=GRACE_S)


def _draw(answer: TaskAnswer[Any], picture: bytes) -> bytes:
    """A PNG of the picture with the answer drawn on it, then scaled down to `MAX_SIDE`."""
    drawn = answer.draw(open_image(picture, DEFAULT_LIMITS, SEEN))
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    file = BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


def _failed(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], is_error=True)


def _mime_type(name: str) -> str | None:
    return mimetypes.guess_type(name)[0]
