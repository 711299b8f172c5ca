"""Requests to `florence mcp` over HTTP, made from a seed, and the check of its answers.

Some are valid, the others have wrong arguments or are damaged. Knows the Model Context Protocol's messages;
nothing about sending.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fuzz_doors import Sent, made_of
from fuzz_parts import Made, common_headers
from fuzzing import ODD, mutate

from florence.mcp.arguments import PICTURE
from florence.mcp.tools import OF_REGION

MCP: Final = "mcp"
INTERNAL_ERROR: Final = -32603
HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
_URIS: Final = ("picture:///1/scene_02.png", "picture:///1/../x", "picture:///9/x", "file:///etc/x", "%ff")
_REGION: Final = ([1, 1, 20, 20], [0, 0, 0, 0], [9, 9, 1, 1], [1e300] * 4, [1, 2])
_TOOLS: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "describe": {"detail": ("short", "detailed", "paragraph", "poem")},
    "find": {
        "what": ("", "a car", "é" * 300, "<loc_1>"),
        "each_phrase": (True, False),
        "tiles": ("off", "auto", "2x1", "1x999", "many"),
        "min_score": (0, 0.5, 1, 7),
    },
    "read": {"places": (True, False), "tiles": ("auto", "2x1", "")},
    "segment": {"what": ("a red circle", ""), "region": _REGION},
    "ask_region": {"region": _REGION, "question": (*OF_REGION, "why")},
}
"""Name of a tool -> its own arguments -> values."""


def mcp_request(door: str, seed: int, number: int, host: str = "127.0.0.1:1") -> Sent:
    """The request with this number: one message. host: where pictures with a URL are."""
    made = made_of(door, seed, number, host)
    headers = {**common_headers(made.source), **HEADERS}
    if made.source.randrange(12) == 0:
        name = made.source.choice(("Accept", "Content-Type", "Mcp-Protocol-Version", "Mcp-Session-Id"))
        value = mutate(made.source, headers.get(name, "2025-06-18").encode())
        headers[name] = "".join(chr(each) for each in value if 32 <= each < 127).strip()
    message = {"jsonrpc": "2.0", "id": made.source.choice((1, "a")), **_call(made)}
    whole = made.source.randrange(2)
    return Sent("/mcp", json.dumps(message).encode() if whole else made.damaged(message), headers)


def _call(made: Made) -> dict[str, Any]:
    """A method and its parameters: mostly a call of a tool."""
    client = {"name": "fuzz", "version": "1"}
    methods: dict[str, Any] = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client},
        "tools/list": {"cursor": "x"},
        "resources/list": {},
        "resources/read": {"uri": made.source.choice(_URIS)},
        "ping": {},
        "nothing": {},
    }
    if made.source.randrange(4) == 0:
        method = made.source.choice(sorted(methods))
        return {"method": method, "params": methods[method]}
    tool = made.source.choice(sorted(_TOOLS))
    return {"method": "tools/call", "params": {"name": tool, "arguments": _arguments(made, tool)}}


def _arguments(made: Made, tool: str) -> dict[str, Any]:
    """A picture and some of the tool's own arguments; at times two pictures or none, or an odd value."""
    contents = {"uri": "other://7", "blob": made.base64()}
    ways: dict[str, Any] = {
        "base64": made.base64(),
        "resource": made.source.choice((*_URIS, contents, contents)),
        "url": made.url,
        "path": "scene_02.png",
    }
    some = made.source.sample(PICTURE, made.source.randrange(3))
    given = ["base64"] if made.source.randrange(3) else some
    own = [(name, values) for name, values in _TOOLS[tool].items() if made.source.randrange(3)]
    arguments = {name: ways[name] for name in given} | {
        name: made.source.choice(values if made.source.randrange(8) else ODD) for name, values in own
    }
    # Most answers are not drawn: drawing takes longer than all else.
    return arguments | ({} if made.source.randrange(10) == 0 else {"draw": False})


def wrong_mcp_answer(_: Sent, status: int, __: Mapping[str, str], body: bytes) -> str:
    """A description of what is wrong with an answer, or an empty text. A tool's error is not wrong, but an
    unexpected one is."""
    if status >= 500:
        return f"status {status}"
    if status != 200:
        return ""
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    try:
        answer = json.loads(events[-1] if events else body)
    except ValueError:
        return "no JSON"
    if answer.get("error", {}).get("code") == INTERNAL_ERROR:
        return "an internal error"
    content = answer.get("result", {}).get("content") or [{}]
    return "a tool that failed" if "the tool failed" in content[0].get("text", "") else ""
