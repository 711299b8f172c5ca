"""Valid-looking requests that cost too much, each kind against a running service: they are refused, and other
requests are still answered.

Times are measured by hand, on a quiet machine.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from serving import Server, serving_fake
from v2 import PICTURE, picture
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow

INFER = "/v2/models/florence2/infer"
MAX_MIB = 300.0
"""The allowed growth of the service: the budget of bodies is 128 MiB here, and a body may exist twice."""
MIB = 2**20


@pytest.fixture(scope="module")
def attacked() -> Iterator[Server]:
    """A service with a fake model and short time limits for heads and bodies."""
    with serving_fake(
        FLORENCE_HEAD_TIMEOUT_S="1",
        FLORENCE_BODY_TIMEOUT_S="2",
        FLORENCE_BODY_MEMORY_BYTES=str(128 * MIB),
    ) as server:
        server.wait_ready()
        yield server


def ask(method: str, url: str | httpx.URL, **sent: Any) -> httpx.Response:
    """The reply to a request, which is sent again where a busy machine did not send it in time."""
    while (reply := httpx.request(method, url, timeout=PATIENCE_S, **sent)).status_code == 408:
        pass
    return reply


@pytest.fixture(autouse=True)
def undisturbed(attacked: Server) -> Iterator[None]:
    """After each attack the same processes still answer, and their memory has grown by less than
    the limit."""
    processes = psutil.Process(attacked.process.pid).children(recursive=True)
    before = sum(process.memory_info().rss for process in processes)
    yield
    for path in ("/livez", "/v2/health/ready"):
        assert ask("GET", attacked.url + path).status_code == 200
    answer = ask("POST", attacked.url + "/caption", json={"image": PICTURE})
    assert answer.status_code == 200
    assert sum(process.memory_info().rss for process in processes) - before < MAX_MIB * MIB
    assert "Traceback" not in attacked.log


KINDS: dict[str, Callable[[], bytes]] = {
    "many objects": lambda: b'{"inputs":[' + b"{}," * (21 << 20) + b"0]}",
    "many keys": lambda: b"{" + b",".join(b'"%d":0' % index for index in range(2_000_000)) + b"}",
    "many strings": lambda: b'{"inputs":[' + b'"x",' * (15 << 20) + b'""]}',
    "digits": lambda: b'{"id":' + b"1" * (60 << 20) + b"}",
    "white space": lambda: b'{"id":' + b" " * (60 << 20) + b"1}",
    "nesting": lambda: b'{"id":' + b"[" * (60 << 20),
    "a huge key": lambda: b'{"' + b"k" * (60 << 20) + b'":1}',
    "a huge string": lambda: b'{"id":"' + b"k" * (60 << 20) + b'"}',
    "escapes": lambda: b'{"id":"' + b'\\"' * (30 << 20) + b'"}',
    "a bomb": lambda: bytes(200 << 20),
}


@pytest.mark.parametrize("path", [INFER, "/caption", "/analyze"])
@pytest.mark.parametrize("kind", KINDS)
def test_json_that_costs_too_much_is_refused(attacked: Server, kind: str, path: str) -> None:
    """Sixty megabytes of expensive JSON, sent as a few kilobytes of gzip, are refused."""
    packed, headers = gzip.compress(KINDS[kind](), 1), {"Content-Encoding": "gzip"}
    reply = ask("POST", attacked.url + path, content=packed, headers=headers)
    assert reply.status_code in (400, 413), reply.text
    assert list(reply.json()) == ["error"]


def test_half_bodies_are_given_up(attacked: Server) -> None:
    """Twenty clients that stop in the middle of a 64 MB body get a 408 or a 503, and a complete body of 20 MB
    is accepted."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 67000000\r\n\r\n" % INFER.encode()
    address = ("127.0.0.1", int(attacked.url.rsplit(":", 1)[1]))
    clients = [socket.create_connection(address, PATIENCE_S) for _ in range(20)]
    for client in clients:
        client.settimeout(0.5)
        try:
            client.sendall(head + bytes(32 << 20))
        except OSError:  # the service has stopped reading, or has closed the connection
            continue
    image = base64.b64encode(picture() + bytes(15 << 20)).decode()
    whole = {"image": image}
    replies: list[httpx.Response] = []

    def accepted() -> bool:
        replies.append(ask("POST", attacked.url + "/caption", json=whole))
        return replies[-1].status_code != 503

    wait_until(accepted)
    assert replies.pop().status_code == 200
    assert all("retry-after" in reply.headers for reply in replies)
    statuses = set()
    for client in clients:
        client.settimeout(PATIENCE_S)
        try:
            statuses.add(client.recv(64)[:12])
        except ConnectionResetError:  # the answer was lost, since the client was still sending
            continue
        finally:
            client.close()
    assert statuses <= {b"HTTP/1.1 408", b"HTTP/1.1 503", b""}


def test_half_a_head_is_given_up(attacked: Server) -> None:
    """A connection that sends half a head gets a 408."""
    address = ("127.0.0.1", int(attacked.url.rsplit(":", 1)[1]))
    with socket.create_connection(address, PATIENCE_S) as client:
        client.sendall(b"POST /caption HTTP/1.1\r\nHost:")
        assert client.recv(64).startswith(b"HTTP/1.1 408")


def test_a_path_forges_no_line_of_the_log(attacked: Server) -> None:
    """Line breaks and escape sequences in a path are written to the log in escaped form."""
    path = b"/forged%0d%0a2026-01-01%20[INFO]%20forged-line%1b[31m"
    ask("GET", httpx.URL(attacked.url, raw_path=path))
    wait_until(lambda: "forged-line" in attacked.log)
    assert "\x1b[31m" not in attacked.log
    assert not any(line.startswith("2026-01-01 [INFO] forged-line") for line in attacked.log.splitlines())


def test_a_value_of_many_parts_is_no_field_of_a_form(attacked: Server) -> None:
    """JSON in a part of a form has the same limits as a JSON body."""
    tasks = json.dumps([{}] * 300_000)
    files = {"image": ("a", base64.b64decode(PICTURE)), "tasks": (None, tasks)}
    reply = ask("POST", attacked.url + "/analyze", files=files)
    assert (reply.status_code, "bytes" in reply.json()["error"]) == (400, True)
