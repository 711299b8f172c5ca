"""Whole HTTP requests for each endpoint of the service, made from a seed: every task, option and way to send
a picture. A third are valid, the others damaged.

A request is determined by its endpoint, seed and number alone. Knows nothing about sending.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from fuzz_parts import Made, common_headers, options
from fuzzing import mutate

from florence.server.typed.openapi import openapi_document
from florence.server.v2.tensors import pack
from florence.types.pictures import PictureOptions
from florence.types.tasks import TASKS, Kind

MODEL: Final = "/v2/models/florence2"
FORM: Final = {"Content-Type": "multipart/form-data; boundary=edge"}
JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Sent:
    """A request as it is sent."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    method: str = "POST"


def request_of(door: str, seed: int, number: int, host: str = "127.0.0.1:1") -> Sent:
    """The request with this number. host: where pictures with a URL are."""
    made = made_of(door, seed, number, host)
    sent = DOORS[door](made)
    return replace(sent, headers={**sent.headers, **common_headers(made.source)})


def made_of(door: str, seed: int, number: int, host: str) -> Made:
    """The parts of the request with this number."""
    return Made(random.Random(f"{door} {seed} {number}"), f"http://{host}/{seed}/{number}")


def _infer(made: Made) -> Sent:
    """A v2 request in JSON with one to three rows."""
    content = _v2(made, [[text] for text in [made.base64()] * made.source.randint(1, 3)])
    return Sent(_model_path(made, "infer"), made.damaged(content), JSON)


def _v2(made: Made, images: list[Any] | None = None) -> dict[str, Any]:
    """The JSON of an infer request; without images it has no tensors."""
    rows = len(images or [])
    columns = {"INPUT_IMAGE": images, "TASK_PROMPT": [made.task.token] * rows}
    if (text := made.text) is not None:
        columns["TEXT_PROMPT"] = [text] * rows
    inputs = [
        {"name": name, "shape": [rows, 1], "datatype": "BYTES", "data": data}
        for name, data in columns.items()
    ]
    content: dict[str, Any] = {"id": "7", "inputs": inputs, "parameters": _parameters(made)}
    if made.source.randrange(2):
        content["outputs"] = [
            {"name": "PARSED_JSON", "parameters": {"binary_data": made.source.random() < 0.5}}
        ]
    return content


def _parameters(made: Made) -> dict[str, Any]:
    """Options in the form of v2's parameters, with Triton's own."""
    named = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in made.options.items()
    }
    more = {"timeout": 60_000_000, "priority": 1, "binary_data_output": True, "triton_final_response": True}
    return named | {name: value for name, value in more.items() if made.source.randrange(6) == 0}


def _model_path(made: Made, verb: str) -> str:
    """A path of the model, at times with a version."""
    return (
        MODEL
        + ("" if made.source.randrange(5) else made.source.choice(("/versions/1", "/versions/2")))
        + f"/{verb}"
    )


def _binary(made: Made) -> Sent:
    """A v2 request with packed tensors after the JSON, at times compressed."""
    rows = made.source.randint(1, 3)
    content, tail = _v2(made, [made.base64()] * rows), b""
    for tensor in content["inputs"]:
        elements = tensor.pop("data")
        if tensor["name"] == "INPUT_IMAGE":
            elements = [made.picture.decode("latin-1")] * rows
        packed = pack([text.encode("latin-1", "replace") for text in elements])
        tensor["parameters"] = {"binary_data_size": len(packed)}
        tail += packed
    head = json.dumps(content).encode() if made.source.randrange(2) else made.damaged(content)
    length = made.source.choice(
        (len(head),) * 9 + (0, -1, len(head) - 1, len(head) + 1, 10**9, "7 ", "٣", "")
    )
    headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
    body = head + made.maybe(mutate, tail) if made.source.randrange(2) else made.maybe(mutate, head + tail)
    return _compressed(made, Sent(_model_path(made, "infer"), body, headers))


def _compressed(made: Made, sent: Sent) -> Sent:
    """The request, at times compressed with gzip or deflate and damaged; at times it asks for a compressed
    answer."""
    accepted = made.source.choice(
        ({}, {"Accept-Encoding": made.source.choice(("gzip", "deflate;q=1", "*", "é"))})
    )
    encoding, pack = made.source.choice(
        (("gzip", partial(gzip.compress, mtime=0)), ("deflate", zlib.compress))
    )
    if made.source.randrange(3):
        return replace(sent, headers={**sent.headers, **accepted})
    encoding = made.source.choice((encoding,) * 8 + ("br", "gzip, deflate", "Identity"))
    headers = {**sent.headers, **accepted, "Content-Encoding": encoding}
    return replace(sent, body=made.maybe(mutate, pack(sent.body)), headers=headers)


def _generate(made: Made) -> Sent:
    """A request of the generate extension, for a whole answer or for events."""
    rows = made.source.randint(1, 2)
    columns: dict[str, Any] = {"INPUT_IMAGE": made.base64(), "TASK_PROMPT": made.task.token}
    if (text := made.text) is not None:
        columns["TEXT_PROMPT"] = text
    content = {name: value if rows == 1 else [value] * rows for name, value in columns.items()}
    parameters = _parameters(made)
    content |= {"parameters": parameters} if made.source.randrange(3) == 0 else parameters
    verb = made.source.choice(("generate", "generate_stream"))
    return Sent(_model_path(made, verb), made.damaged({"id": "7", **content}), JSON)


def _typed(made: Made) -> Sent:
    """A request of a typed endpoint in JSON."""
    path, fields = made.typed()
    return _compressed(made, Sent(path, made.damaged({"image": made.base64(), **fields}), JSON))


def _form(made: Made) -> Sent:
    """A form with a part for each field, some of them as files; damaged as bytes."""
    path, fields = made.typed()
    return Sent(path, made.maybe(mutate, _in_form(made, {"image": made.picture, **fields})), FORM)


def _in_form(made: Made, fields: Mapping[str, Any]) -> bytes:
    """The fields as a multipart form."""
    parts = []
    for name, value in fields.items():
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        is_file = isinstance(value, bytes) or made.source.randrange(6) == 0
        file = b'; filename="a.png"\r\nContent-Type: image/png' if is_file else b""
        parts.append(
            b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
            % (name.encode(), file, data)
        )
    return b"".join(parts) + b"--edge--\r\n"


def _alone(made: Made) -> Sent:
    """A request with the picture as its body and the other fields in the query."""
    path, fields = made.typed()
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    query = made.maybe(mutate, urlencode(texts, errors="replace").encode())
    kind = made.source.choice(("image/png", "image/jpeg", "application/octet-stream", "image/*; x=1"))
    plain = query.decode("latin-1").translate(dict.fromkeys((*range(33), *range(127, 256)), "+"))
    return Sent(f"{path}?{plain}", made.maybe(mutate, made.picture), {"Content-Type": kind})


def _picture(made: Made) -> Sent:
    """A damaged picture in an otherwise valid request, with the options of pictures; a few answers
    are drawn."""
    names = sorted(PictureOptions.model_fields)
    made.options, made.picture = options(made.source, names), mutate(made.source, made.picture)
    made.task = made.source.choice((TASKS.resolve("caption"), TASKS.resolve("object_detection")))
    fields = {"image": made.picture, **made.options}
    drawn = {"Accept": "image/png"} if made.source.randrange(40) == 0 else {}
    if made.source.randrange(2):
        return Sent(f"/{made.task.name}", _in_form(made, fields), {**FORM, **drawn})
    content = {**fields, "image": made.base64()}
    return Sent(f"/{made.task.name}", json.dumps(content).encode(), {**JSON, **drawn})


def _url(made: Made) -> Sent:
    """A request with a picture's URL; its host sends damaged pictures, and some URLs are damaged."""
    path, fields = made.typed()
    url = made.url if made.source.randrange(4) else mutate(made.source, made.url.encode()).decode("latin-1")
    if made.source.randrange(3) == 0:
        return _chat_about(made, url)
    content = {"image_url": url, **fields}
    return Sent(
        path, json.dumps(content).encode() if made.source.randrange(3) else made.damaged(content), JSON
    )


def _chat(made: Made) -> Sent:
    """A chat request with the picture as a data URI."""
    return _chat_about(made, "data:image/png;base64," + base64.b64encode(made.picture).decode())


def _chat_about(made: Made, url: str) -> Sent:
    """A chat request with the picture's URL."""
    words = made.source.choice((made.task.token, made.task.name, made.task.name.replace("_", " ") + ":"))
    parts = [
        {"type": "text", "text": f"{words} {made.text or ''}"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    content = {"model": "florence2", "messages": [{"role": "user", "content": parts}], **made.options}
    more = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "answer_as": made.source.choice(list(Kind)),
        "user": "me",
        "temperature": 0,
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
    }
    content |= {name: value for name, value in more.items() if made.source.randrange(6) == 0}
    if made.source.randrange(4) == 0:
        content["max_completion_tokens"] = content.pop("max_new_tokens")
    return Sent("/v1/chat/completions", made.damaged(content), JSON)


def _other(made: Made) -> Sent:
    """A request with any method for any other path, or for a path that does not exist."""
    path = made.source.choice(
        [*sorted(openapi_document()["paths"]), "/", "/ui", "/docs", "/docs.json", "/healthz"]
    )
    path = path.replace("{model}", "florence2")
    if made.source.randrange(3) == 0:
        damaged = mutate(made.source, path.encode()).decode("latin-1")
        path = "/" + "".join(each for each in damaged if 33 <= ord(each) < 127)
    method = made.source.choice(
        ("GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "X")
    )
    body = made.maybe(mutate, b'{"ready": true}') if method in ("POST", "PUT") else b""
    return Sent(
        path, body, {"Content-Type": made.source.choice(("application/json", "text/plain", "x"))}, method
    )


DOORS: Final[Mapping[str, Callable[[Made], Sent]]] = {
    "infer": _infer,
    "binary": _binary,
    "generate": _generate,
    "typed": _typed,
    "form": _form,
    "alone": _alone,
    "picture": _picture,
    "url": _url,
    "chat": _chat,
    "other": _other,
}
"""Name of an endpoint -> the function that makes its requests."""
