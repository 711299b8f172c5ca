"""The parts of requests for all endpoints: options, pictures, a task's input, and headers.

Knows what the service accepts; nothing about endpoints.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import fuzzing
from fuzzing import ODD, mutate, mutate_json
from pdfs import pdf

from florence.types.options import OF_SAMPLING, RequestParameters
from florence.types.tasks import TASKS, Input, Kind
from florence.types.tiling import OF_TILES

TOKENS: Final = 3  # the longest answer, unless damage asks for more
ADAPTER: Final = "painter"
"""The adapter that the tested service has."""


def options(source: random.Random, names: list[str] | None = None) -> dict[str, Any]:
    """Up to four options of a request: most values are valid, and options that they need are added."""
    known = schemas()
    chosen = source.sample(names or sorted(known), source.randint(0, min(4, len(names or known))))
    made: dict[str, Any] = {name: _value(source, name, known[name]) for name in chosen}
    if source.randrange(8):
        made |= {"do_sample": True, "num_beams": 1} if made.keys() & {*OF_SAMPLING, "do_sample"} else {}
        made |= {"tiles": "auto"} if made.keys() & set(OF_TILES) else {}
        made |= {"min_new_tokens": 1} if "min_new_tokens" in made else {}
    return {"num_beams": source.choice((1, 1, 1, 2, 3)), "max_new_tokens": source.randint(1, TOKENS), **made}


@cache
def schemas() -> dict[str, Any]:
    """The JSON schema of each option."""
    made: dict[str, Any] = RequestParameters.model_json_schema()["properties"]
    return made


def _value(source: random.Random, name: str, schema: Mapping[str, Any]) -> Any:
    """A value of an option: most are allowed by its schema, some are at its limits."""
    if source.randrange(10) == 0:
        return source.choice(ODD)
    if name in ("adapter", "tiles", "background", "labels"):
        words = {
            "adapter": (ADAPTER, ADAPTER, "another"),
            "tiles": ("off", "auto", "1x1", "2x1", "3x2", "1x999"),
            "background": ("#ffffff", "#A0b1C2"),
            "labels": ("car, person", ["car"], ["car", "Ü", "*"]),
        }
        return source.choice(words[name])
    kind = source.choice([each for each in schema["anyOf"] if each.get("type") != "null"])
    if "enum" in kind or "const" in kind:
        return source.choice(kind.get("enum", [kind.get("const")]))
    if kind["type"] == "boolean":
        return source.random() < 0.5
    least, most = kind["minimum"], kind["maximum"]
    ends = (least, min(most, 1000) if name in ("min_new_tokens", "max_new_tokens") else most)
    if kind["type"] == "integer":
        return source.choice((*ends, *[source.randint(least, min(least + 8, most)) for _ in range(4)]))
    return source.choice((*ends, *[round(source.uniform(least, min(most, least + 2)), 3) for _ in range(4)]))


class Made:
    """The parts of one request."""

    def __init__(self, source: random.Random, url: str) -> None:
        self.source, self.url = source, url
        self.task = source.choice(list(TASKS.values()))
        self.options = options(source)
        self.picture = source.choice(list(all_pictures().values()))

    @property
    def text(self) -> str | None:
        """The task's text or region; at times a missing or a wrong one."""
        if self.task.input is Input.NONE:
            return None if self.source.randrange(12) else "a car"
        return (
            self.task.example if self.source.randrange(12) else self.source.choice(("", "<loc_1>", "é" * 300))
        )

    def maybe(self, change: Callable[[random.Random, bytes], bytes], data: bytes) -> bytes:
        """The data, unchanged in one of three cases, otherwise changed."""
        return change(self.source, data) if self.source.randrange(3) else data

    def damaged(self, content: Any) -> bytes:
        """The content as JSON: unchanged, damaged as bytes, or damaged as values."""
        data = json.dumps(content).encode()
        return self.maybe(mutate_json if self.source.randrange(2) else mutate, data)

    def base64(self) -> str:
        """The picture as base64 text, at times as a data URI."""
        head = "" if self.source.randrange(4) else "data:image/png;base64,"
        return head + base64.b64encode(self.picture).decode()

    def typed(self) -> tuple[str, dict[str, Any]]:
        """A path of the typed endpoints, and its fields without the picture."""
        match self.source.randrange(8):
            case 0:
                kind = self.source.choice(list(Kind))
                return "/prompt", {
                    "prompt": f"{self.task.token}{self.text or ''}",
                    "answer_as": kind,
                    **self.options,
                }
            case 1:
                tasks = [{"task": task.name} for task in self.source.sample(list(TASKS.values()), 2)]
                tasks[0] |= {self.task.input.value: self.text} if self.task.input is not Input.NONE else {}
                return "/analyze", {"tasks": [*tasks, self.task.token], **self.options}
            case 2:
                path = f"/tasks/{self.task.name}"
            case _:
                path = f"/{self.task.name}"
        name = "region" if self.task.input is Input.REGION else "text"
        region: Any = [0, 0, 10.5, 12] if self.source.randrange(2) else self.text
        given = {} if self.text is None else {name: region if name == "region" else self.text}
        return path, {**given, **self.options}


@cache
def all_pictures() -> Mapping[str, bytes]:
    """Whole files of every format, some with several frames or pages."""
    frames = {f"{kind} frames": data for kind, data in fuzzing.many().items()}
    return {**fuzzing.pictures(), **frames, "PDF": pdf()}


def common_headers(source: random.Random) -> dict[str, str]:
    """Headers that any request may have, whole or damaged; most requests get none."""
    known = {
        "X-Request-Id": "a1b2:c3",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b,c=d",
        "baggage": "a=b,c=d;e",
        "Origin": "https://example.com",
        "Access-Control-Request-Method": "POST",
        "Authorization": "Bearer " + "a1" * 16,
        "User-Agent": "BentoML HTTP Client/1.4",
        "Expect": "100-continue",
        "Accept": "application/json, image/png",
        "Accept-Encoding": "gzip",
        "Connection": "close",
        "Forwarded": "for=[::1]",
        "X-Forwarded-For": "1.2.3.4",
        "Range": "bytes=0-1",
        "If-None-Match": "*",
    }
    made = {}
    for name in source.sample(sorted(known), source.choice((0, 0, 0, 1, 2))):
        value = known[name].encode()
        damaged = (
            mutate(source, value) if source.randrange(2) and name not in ("Connection", "Expect") else value
        )
        made[name] = "".join(chr(each) for each in damaged[:4000] if 32 <= each < 127 or each >= 160).strip()
    return made
