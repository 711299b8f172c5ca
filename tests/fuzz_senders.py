"""Send the requests of `fuzz_doors` and the calls of `fuzz_calls` to a service and check the answers.

It also has the host from which the service fetches damaged pictures.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping

import fuzzing
import grpc
from fuzz_agents import MCP, mcp_request, wrong_mcp_answer
from fuzz_calls import STREAM, call_of
from fuzz_doors import DOORS, Sent, request_of

PATIENCE_S = 60.0
SOON_S = 0.3  # seconds to wait for an answer; an incomplete request gets none
UNCHECKED = ("/healthz", "/livez", "/readyz", "/metrics")
HARMLESS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")

Send = Callable[[int], str]
"""Send the input of a number and return the status of its answer; a wrong answer is an AssertionError."""


def http_sender(address: tuple[str, int], door: str, seed: int, host: str) -> Send:
    """A function that sends requests, over one connection for each thread. host: of the pictures
    with a URL."""
    mine = threading.local()
    make, wrong_in = (mcp_request, wrong_mcp_answer) if door == MCP else (request_of, wrong_answer)
    make(door, seed, 0)  # fill the caches before several threads need them

    def send(number: int) -> str:
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        sent = make(door, seed, number, host)
        try:
            reply, body = _exchange(mine.connection, sent)
        except (ConnectionError, http.client.RemoteDisconnected):
            mine.connection.close()  # the service closed it after the previous answer
            reply, body = _exchange(mine.connection, sent)
        if wrong := wrong_in(sent, reply.status, dict(reply.headers), body):
            raise AssertionError(
                f"{wrong}: {sent.method} {sent.path[:200]} {dict(sent.headers)}: {body[:500]!r}"
            )
        return str(reply.status)

    return send


def _exchange(connection: http.client.HTTPConnection, sent: Sent) -> tuple[http.client.HTTPResponse, bytes]:
    """Send the request and read the whole answer."""
    headers = {name: value.encode("latin-1", "replace") for name, value in sent.headers.items()}
    connection.request(sent.method, sent.path, sent.body, headers)
    reply = connection.getresponse()
    return reply, reply.read()


def wrong_answer(sent: Sent, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """A description of what is wrong with an answer, or an empty text.

    A 5xx is allowed for a 503 with Retry-After, and where the document states it: 501 for an unknown
    encoding, 502 for a host that fails.
    """
    named = {name.lower(): value for name, value in headers.items()}
    if "x-request-id" not in named:
        return "no X-Request-Id"
    if status >= 500 and not (status == 503 and "retry-after" in named):
        known = {501: "Content-Encoding" in sent.headers, 502: b"image_url" in sent.body}
        if not known.get(status):
            return f"status {status}"
    if sent.method == "HEAD" or status in (204, 304) or sent.path.partition("?")[0] in UNCHECKED:
        return ""
    return _wrong_body(status, named, body)


def _wrong_body(status: int, named: Mapping[str, str], body: bytes) -> str:
    """A description of what is wrong with an answer's body, or an empty text."""
    kind = named.get("content-type", "")
    if "content-encoding" in named or (status < 400 and not kind.startswith("application/json")):
        return ""
    try:
        content = json.loads(body)
    except ValueError:
        return f"status {status} with a body that is not JSON"
    if status < 400:
        return ""
    error = content.get("error") if isinstance(content, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return "" if isinstance(text, str) and text and list(content) == ["error"] else "no error in its shape"


def raw_sender(address: tuple[str, int], seed: int, host: str) -> Send:
    """A function that sends requests of all endpoints as damaged bytes (heads, chunks, lengths), each over a
    connection of its own."""
    request_of("other", seed, 0)

    def send(number: int) -> str:
        source = random.Random(f"raw {seed} {number}")
        sent = request_of(source.choice(sorted(DOORS)), seed, number, host)
        data = as_bytes(source, sent)
        if source.randrange(6):
            head, _, body = data.partition(b"\r\n\r\n")
            data = fuzzing.mutate(source, head + b"\r\n\r\n" + body[:100]) + body[100:]
        with socket.create_connection(address, timeout=PATIENCE_S) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return _read_status(connection)

    return send


def as_bytes(source: random.Random, sent: Sent) -> bytes:
    """The request as bytes on a connection, its body whole or in chunks, which may have trailers."""
    pieces = [f"{name}: {value}".encode("latin-1", "replace") for name, value in sent.headers.items()]
    chunked = source.randrange(2)
    pieces.append(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(sent.body))
    head = b"\r\n".join(
        (f"{sent.method} {sent.path} HTTP/1.1".encode("latin-1"), b"Host: a", *pieces, b"", b"")
    )
    if not chunked:
        return head + sent.body
    size = source.choice((7, 100, 4096))
    sizes = [sent.body[at : at + size] for at in range(0, min(len(sent.body), 50 * size), size)]
    trailer = source.choice((b"", b"", b"X: y\r\n", b"X: y\r\n" * 300))
    return (
        head
        + b"".join(b"%x;a=b\r\n%b\r\n" % (len(each), each) for each in sizes)
        + b"0\r\n"
        + trailer
        + b"\r\n"
    )


def _read_status(connection: socket.socket) -> str:
    """The first status that the service sends, or whether it waits or closes."""
    connection.settimeout(SOON_S)
    try:
        data = connection.recv(4096)
    except TimeoutError:
        return "waits"
    except ConnectionError:
        return "closed"
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", data)
    if found is None:
        if data:
            raise AssertionError(f"no HTTP: {data[:200]!r}")
        return "closed"
    status = found[1].decode()
    if status.startswith("5") and status not in ("501", "502") and b"retry-after" not in data.lower():
        raise AssertionError(f"status {status}: {data[:500]!r}")
    return status


def grpc_sender(channel: grpc.Channel, door: str, seed: int) -> Send:
    """A function that sends unary calls and streams."""

    def send(number: int) -> str:
        asked = call_of(door, seed, number)
        try:
            if asked.method == STREAM or "Reflection" in asked.method:
                answers = list(
                    channel.stream_stream(asked.method)(
                        iter(asked.messages), timeout=PATIENCE_S, metadata=asked.metadata
                    )
                )
                if asked.method == STREAM and len(answers) != len(asked.messages):
                    raise AssertionError(f"{len(answers)} answers to {len(asked.messages)} messages")
                return "OK"
            channel.unary_unary(asked.method)(asked.messages[0], timeout=PATIENCE_S, metadata=asked.metadata)
        except grpc.RpcError as error:
            code = error.code().name
            if code not in HARMLESS or code == "DEADLINE_EXCEEDED":
                raise AssertionError(f"{code}: {asked.method} {error.details()}") from error
            return str(code)
        return "OK"

    return send


class _Answers(socketserver.StreamRequestHandler):
    """A handler that answers every request; the answer depends on the path alone."""

    timeout = PATIENCE_S

    def handle(self) -> None:
        """Read a request's head and answer it."""
        with contextlib.suppress(OSError):
            line = self.rfile.readline(10_000)
            while self.rfile.readline(10_000).strip():
                pass
            self.wfile.write(picture_answer(random.Random(line)))


def picture_answer(source: random.Random) -> bytes:
    """An HTTP answer with a picture or a redirect; two of three are damaged."""
    picture = source.choice(list(fuzzing.pictures().values()))
    picture = fuzzing.mutate(source, picture) if source.randrange(2) else picture
    if source.randrange(5) == 0:
        target = source.choice((f"/{source.randrange(10**6)}", "//[::1]/x", "https://127.0.0.1/", "\xff", ""))
        head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
        picture = b""
    elif source.randrange(3) == 0:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        picture = b"%x\r\n%b\r\n0\r\n\r\n" % (len(picture), picture)
    else:
        status = source.choice((200, 200, 200, 404, 429, 500))
        head = b"HTTP/1.1 %d Fine\r\nContent-Length: %d\r\n\r\n" % (status, len(picture))
    return fuzzing.mutate(source, head + picture) if source.randrange(3) == 0 else head + picture


@contextlib.contextmanager
def picture_host() -> Iterator[str]:
    """Start a host on this machine that answers with `picture_answer`; yield its address and port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
