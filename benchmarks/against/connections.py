"""Connections that send nothing, half a head or many requests at once, and that read no answers."""

from __future__ import annotations

import json

from bodies import as_text, small_picture

from against.target import Attack, Target, held

HELD_S = 6.0


def post(path: str, content: dict[str, object]) -> bytes:
    """A POST request as bytes."""
    body = json.dumps(content).encode()
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def get(path: str) -> bytes:
    """A GET request as bytes."""
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()


def unread(path: str) -> Attack:
    """An attack by many connections that request a path repeatedly and read nothing."""
    return lambda target: held(target, 200, get(path) * target.times(50), HELD_S)


def image() -> str:
    """A small PNG as base64."""
    return as_text(small_picture())


def streams(target: Target) -> object:
    """Request event streams of 300 tokens each and read nothing."""
    ask = {"INPUT_IMAGE": image(), "TASK_PROMPT": "<CAPTION>", "num_beams": 1, "min_new_tokens": 300}
    sent = post("/v2/models/florence2/generate_stream", {**ask, "max_new_tokens": 300})
    return held(target, 8, sent, 10.0, small=True)


def answers(target: Target) -> object:
    """Send pipelined captions and read nothing."""
    sent = post("/caption", {"image": image(), "max_new_tokens": 1, "num_beams": 1})
    return held(target, 100, sent * target.times(20), 10.0, small=True)


ATTACKS: dict[str, Attack] = {
    "12,000 connections that send nothing": lambda target: held(target, 12_000, b"", HELD_S),
    "12,000 half heads": lambda target: held(target, 12_000, b"GET / HTTP/1.1\r\nX: a", HELD_S),
    **{
        f"{path}, not read": unread(path)
        for path in ("/docs.json", "/docs", "/pages/swagger-ui-bundle.js", "/", "/info", "/v2", "/metrics")
    },
    "/v1/models, not read": unread("/v1/models"),
    "/v2 statistics, not read": unread("/v2/models/florence2/stats"),
    "a path that is not there, not read": unread("/nothing/here"),
    "health, not read": unread("/v2/health/live"),
    "streams of events, not read": streams,
    "captions, not read": answers,
}
