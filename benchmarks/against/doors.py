"""Requests to single endpoints: pictures by URL from misbehaving hosts, chat bodies, forms, keys, adapters,
prompts at their limits, and pictures derived from others."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bodies import EDGE, FORM, as_text, small_picture
from serving import ROOT

from against.connections import image
from against.target import PATIENCE_S, Attack, Target, counted

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer " + "k" * 64}
Body = tuple[str, bytes, dict[str, str]]
"""A path, a request's body, its headers."""


def ask(target: Target, path: str, body: bytes, headers: dict[str, str]) -> object:
    """The status, or the name of the error."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        return f"{reply.status} {reply.read()[:60]!r}" if reply.status != 200 else reply.status
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def at_once(make: Callable[[Target], Body], count: int, clients: int = 2) -> Attack:
    """Send `count` requests from `clients` clients."""

    def attack(target: Target) -> object:
        body = make(target)
        with ThreadPoolExecutor(clients) as pool:
            return counted(pool.map(lambda _: ask(target, *body), range(target.times(count))))

    return attack


def typed(**fields: object) -> Body:
    """A request for a caption of a small picture, with further fields."""
    content = {"image": image(), "num_beams": 1, "max_new_tokens": 1, **fields}
    return "/caption", json.dumps({k: v for k, v in content.items() if v is not None}).encode(), {}


def by_url(path: str) -> Callable[[Target], Body]:
    """A request for a caption of a picture at the misbehaving host."""
    return lambda target: typed(image=None, image_url=f"http://127.0.0.1:{target.web_port}{path}")


def web(listening: socket.socket) -> None:
    """Run the misbehaving host, whose behaviour depends on the path."""
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client,), daemon=True).start()


def _serve(client: socket.socket) -> None:
    """Answer one connection."""
    try:
        path = client.recv(4096).split(b" ")[1].decode()
        for piece in _said(path):
            client.sendall(piece)
    except (OSError, IndexError):
        pass
    finally:
        client.close()


def _said(path: str) -> Iterator[bytes]:
    """The pieces of an answer for this path."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + small_picture()[:60]
    if path == "/silent":
        time.sleep(PATIENCE_S)
    elif path == "/endless":
        yield head
        while True:
            yield bytes(65_536)
    elif path == "/drip":
        yield head
        while True:
            time.sleep(0.5)
            yield b"\0"
    elif path == "/head":
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X: " + b"a" * 4000 + b"\r\n"
    elif path == "/loop":
        yield b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"
    elif path == "/private":
        yield b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"


def messages(count: int, parts: int, url: str) -> Body:
    """A chat of `count` messages of `parts` parts with this picture."""
    part = {"type": "image_url", "image_url": {"url": url}}
    content = [*[part] * parts, {"type": "text", "text": "<CAPTION>"}]
    body = {"model": "florence2", "messages": [{"role": "user", "content": content}] * count}
    return CHAT, json.dumps(body).encode(), {}


def form(parts: int, names: str = "a") -> Body:
    """A form of this number of parts."""
    one = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nx\r\n' % (EDGE, names.encode())
    return "/caption", one * parts + b"--%b--\r\n" % EDGE, FORM


def bad_keys(target: Target) -> object:
    """Send thousands of unknown keys of many lengths."""

    def tried(index: int) -> object:
        path, body, _ = typed()
        return ask(target, path, body, {"Authorization": f"Bearer {index:064d}{'x' * (index % 4000)}"})

    with ThreadPoolExecutor(8) as pool:
        return counted(pool.map(tried, range(target.times(5000))))


def adapter_names(target: Target) -> object:
    """Send adapter names that are long, odd, or look like paths."""
    names = ["a" * 60_000, "../" * 5000, "\u202e\x00\n" * 3000, "%s" * 9000, "𝕏" * 15_000, ""]
    return counted(ask(target, *typed(adapter=name)) for name in names * target.times(50))


def longest(task: str, **fields: object) -> Attack:
    """An attack by the longest allowed answers, with eight beams, two at once."""
    fields |= {"num_beams": 8, "min_new_tokens": 1000, "max_new_tokens": 1024}

    def make(_: Target) -> Body:
        return f"/{task}", typed(**fields)[1], {}

    return at_once(make, 2)


def derived(form: str, kind: str) -> Callable[[Target], Body]:
    """A picture derived from another one many times."""

    def make(target: Target) -> Body:
        sys.path.insert(0, str(ROOT / "tests"))
        import heifs

        makers = {
            "grid": lambda: heifs.grid(form, (1024, 1024), 60, 60, (1024, 1024)),
            "grid that fits": lambda: heifs.grid(form, (1024, 1024), 17, 17, (1024, 1024)),
            "overlay": lambda: heifs.overlay(form, (1024, 1024), 3000, (1024, 1024)),
            "huge": lambda: heifs.grid(form, (64, 64), 1, 1, (2**31, 2**31)),
            "circle": lambda: heifs.derived(form, b"grid", (64, 64), (64, 64), bytes(8), 60, deep=30),
        }
        return typed(image=as_text(makers[kind]()))

    return make


URLS: dict[str, Attack] = {
    f"image_url: {path}": at_once(by_url(path), 200, clients=100)
    for path in ("/silent", "/endless", "/drip", "/head", "/loop", "/private")
}
KEYS: dict[str, Attack] = {"5,000 bad keys": bad_keys}
ATTACKS: dict[str, Attack] = {
    "a chat of 500 messages": at_once(lambda _: messages(500, 1, "data:image/png;base64," + image()), 20),
    "a chat of 3,000 parts": at_once(lambda _: messages(1, 3000, "data:image/png;base64,AAAA"), 20),
    "a chat with 40 MB of base64": at_once(
        lambda _: messages(1, 1, "data:image/png;base64," + "A" * 40_000_000), 4
    ),
    "a form of 100,000 parts": at_once(lambda _: form(100_000), 20),
    "a form of long names": at_once(lambda _: form(30, names="n" * 15_000), 100),
    "adapters' names": adapter_names,
    **{
        f"{form} {kind}": at_once(derived(form, kind), 4)
        for form in ("HEIF", "AVIF")
        for kind in ("grid", "grid that fits", "overlay", "huge", "circle")
    },
    "two of the longest answers": longest("more_detailed_caption"),
    "two of the longest prompts": longest("caption_to_phrase_grounding", text="a cat " * 320),
}
