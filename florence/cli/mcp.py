"""`florence mcp`: tools for agents, which ask a service or a model loaded here.

The SDK is imported when the command runs: the other commands don't need it.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from florence.bulk.question import PictureQuestion
from florence.cli.asking import open_asker
from florence.cli.serving import check_free
from florence.cli.telling import tell_lines
from florence.client import Client, ImageUrl
from florence.errors import MissingLibrary, SettingsError
from florence.images.limits import PDF_DPI
from florence.types.answer import TaskAnswer
from florence.types.environment import CLIENT_KEY

MCP: Final = (
    "serve tools about pictures to agents over the Model Context Protocol",
    "Speaks over standard input and output, for agents that start it; with --http over streamable\n"
    f"HTTP, at /mcp. The API key for a service is read from {CLIENT_KEY}.",
)
"""The command's summary, and what its help ends with."""
_HOST: Final = "127.0.0.1"


def add_mcp(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.set_defaults(dpi=PDF_DPI)
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        action="append",
        type=Path,
        default=[],
        help="a folder whose pictures are resources; over stdio, tools also take their paths; may be given "
        "again (default: none)",
    )
    parser.add_argument(
        "--http",
        metavar="[HOST:]PORT",
        help="serve streamable HTTP, without authentication, in place of stdio (default host: 127.0.0.1)",
    )


def mcp(arguments: argparse.Namespace) -> int:
    """`florence mcp`; returns when the client disconnects or the process is signalled to stop."""
    try:
        from florence.mcp.roots import Roots
        from florence.mcp.server import PictureServer, serve_http, serve_stdio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "starlette", "uvicorn"):
            raise
        raise MissingLibrary("florence mcp", "mcp", "mcp") from error
    address = None if arguments.http is None else read_address(arguments.http)
    roots = Roots(arguments.root, local=address is None)
    if address is not None:
        check_free(*address, "--http", "--http")
    with open_asker(arguments) as ask, ExitStack() as stack:
        client = stack.enter_context(Client(arguments.url)) if arguments.url else None
        server = PictureServer(ask, roots, None if client is None else partial(_ask_url, client))
        if address is None:
            serve_stdio(server)
        else:
            host, port = address
            tell_lines([f"tools for agents at http://{f'[{host}]' if ':' in host else host}:{port}/mcp"])
            serve_http(server, host, port)
    return 0


def _ask_url(client: Client, url: str, question: PictureQuestion) -> TaskAnswer[Any]:
    """The answer about a picture that the service fetches, if its settings allow it."""
    options: Any = question.options
    answer: TaskAnswer[Any] = client.run(
        ImageUrl(url), question.task, question.text, region=question.region, **options
    )
    return answer


def read_address(text: str) -> tuple[str, int]:
    """Host and port of a text such as [HOST:]PORT. Raises SettingsError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 1 <= int(port) <= 65_535):
        raise SettingsError(f"--http is [HOST:]PORT, such as 8080, got {text!r}")
    return host.strip("[]") or _HOST, int(port)
