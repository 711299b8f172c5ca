"""Connections of a real HTTP server: slow heads time out, probes go before a burst, log lines are escaped."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from clocked import run_clocked, skip
from waiting import PATIENCE_S

from florence.server.http.accepting import Crowd
from florence.server.http.bodies import read_body
from florence.server.http.connections import MAX_CHUNKS, MAX_LINES, BoundedParser, bounded
from florence.server.observability.access_log import MAX_CHARS, EscapeControls

HEAD_S = 30.0
HEAD = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n"
App = Callable[[Any, Any, Any], Awaitable[None]]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Reply with 204 to any request."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(app: App, head_timeout_s: float) -> AsyncIterator[int]:
    """Serve the app on a free port."""
    made: Any = bounded(Crowd(100_000), head_timeout_s, PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, http=made, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def said(port: int, *parts: bytes) -> bytes:
    """All that a server sends in reply to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    text = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return text


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"GET / HT", b"HTTP/1.1 408 "),
        (HEAD[:-2] % b"", b"HTTP/1.1 408 "),
    ],
)
def test_a_head_that_does_not_arrive_is_given_up(sent: bytes, expected: bytes) -> None:
    """An incomplete head gets a 408; a connection without a byte is closed."""

    async def scenario() -> bytes:
        async with serving(answer, HEAD_S) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await said(port, LAST)  # the server has read both
            skip(HEAD_S)
            text = await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            return text

    assert run_clocked(scenario()).startswith(expected)


def test_a_byte_at_a_time_gets_no_more_time() -> None:
    """The time limit is for the whole head, also if it comes byte by byte."""

    async def scenario() -> bytes:
        async with serving(answer, HEAD_S) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            reading = asyncio.ensure_future(reader.read())
            writer.write(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(5):
                await said(port, LAST)  # the server has read both
                assert not reading.done()
                writer.write(b"x")
                skip(HEAD_S / 6)
            skip(HEAD_S)
            await asyncio.wait_for(asyncio.wait([reading]), PATIENCE_S)
            writer.close()
            try:
                return await reading
            except ConnectionResetError:  # caused by a byte sent after the answer
                return b"HTTP/1.1 408 "

    assert run_clocked(scenario()).startswith(b"HTTP/1.1 408 ")


def test_requests_one_after_the_other_and_in_one_piece_are_answered() -> None:
    """Pipelined and split requests are answered; the time limit of a head does not count the answer's
    time."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        skip(HEAD_S)
        await asyncio.sleep(0)
        await answer(scope, receive, send)

    async def scenario() -> bytes:
        async with serving(slow, HEAD_S) as port:
            return await said(port, HEAD % b"1" + HEAD % b"2", LAST)

    assert run_clocked(scenario()).count(b"HTTP/1.1 204") == 3


def test_a_probe_goes_before_a_burst() -> None:
    """A probe is answered after only a few of a hundred heads that came before it."""
    order: list[str] = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["path"])
        await answer(scope, receive, send)

    async def scenario() -> None:
        async with serving(noted, PATIENCE_S) as port:
            clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(101)]
            for index, (_, writer) in enumerate(clients):
                writer.write(HEAD % (b"v2/health/live" if index == 100 else b"caption"))
            for reader, writer in clients:
                assert (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.1 204")
                writer.close()

    asyncio.run(scenario())
    assert len(order) == 101
    assert order.index("/v2/health/live") < 50


def chunked(body: bytes, sizes: Iterable[int]) -> bytes:
    """A request whose body comes in chunks of these sizes, repeated as needed."""
    parts, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(body):
            break
        part = body[at : at + size]
        parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += size
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(parts) + b"0\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reply with 200 and the request's body."""
    body = await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(body)})


@pytest.mark.parametrize("seed", range(4))
def test_a_body_arrives_as_it_was_sent(seed: int) -> None:
    """A long random body with many line ends arrives unchanged, with a length or in random chunks, written
    in random pieces; the next request on the connection is answered too."""
    dice = random.Random(seed)
    body = bytes(dice.choices(b"\r\n\nab", k=dice.randint(20_000, 400_000)))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    sent = head + body + chunked(body, [dice.randint(100, 5000) for _ in range(9)])
    cuts = sorted(dice.randrange(len(sent)) for _ in range(5))
    pieces = [sent[a:b] for a, b in itertools.pairwise((0, *cuts, len(sent)))]

    async def scenario() -> bytes:
        async with serving(echo, PATIENCE_S) as port:
            return await said(port, *pieces)

    text = asyncio.run(scenario())
    assert text.count(b"HTTP/1.1 200") == 2
    first = text.index(body)
    assert b"HTTP/1.1 200" in text[:first]
    # The second answer is chunked, as uvicorn sends a body without a length.
    assert sum(text[first:].count(bytes([each])) for each in b"ab") >= 2 * sum(map(body.count, b"ab"))


def test_no_round_parses_more_than_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in chunks of one byte, the slowest for a parser in Python, is parsed in limited parts; a body
    with few lines is not split."""
    lines: list[int] = []
    receive = BoundedParser.receive_data

    def noted(self: BoundedParser, data: bytes) -> None:
        lines.append(data.count(b"\n"))
        receive(self, data)

    monkeypatch.setattr(BoundedParser, "receive_data", noted)

    async def scenario(sent: bytes) -> bytes:
        async with serving(echo, PATIENCE_S) as port:
            return await said(port, sent)

    assert asyncio.run(scenario(chunked(b"x" * 9000, [1]))).startswith(b"HTTP/1.1 200")
    assert sum(lines) > 18_000
    assert max(lines) <= MAX_LINES
    lines.clear()
    assert asyncio.run(scenario(chunked(bytes(2_000_000), [1_000_000]))).startswith(b"HTTP/1.1 200")
    assert len(lines) < 100


@pytest.mark.parametrize(
    "sent",
    [
        chunked(b"x" * (MAX_CHUNKS + 20), [1]),
        HEAD[:-2] % b"" + b"a:\r\n" * (2 * MAX_LINES) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
        chunked(b"x", [1])[:-2] + b"a:\r\n" * (4 * MAX_LINES) + b"\r\n",
        chunked(b"x", [1]).replace(b"Host: a", b"Host: a\r\nContent-Length: 1"),
    ],
    ids=["chunks", "lines of a head", "a long head", "lines of a trailer", "two framings"],
)
def test_what_costs_a_parser_too_much_or_is_ambiguous_is_refused(sent: bytes) -> None:
    """Input that is too expensive to parse, or whose body has two framings, gets a 400, and its connection
    closes."""

    async def scenario() -> bytes:
        async with serving(echo, PATIENCE_S) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            reading = asyncio.ensure_future(reader.read(64))
            writer.write(sent)
            answer = await asyncio.wait_for(reading, PATIENCE_S)
            writer.close()
            return answer

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 400")


async def answer_at_the_end(scope: Any, receive: Any, send: Any) -> None:
    """Reply with 204 after the body, or when the client leaves."""
    while (await receive()).get("more_body"):
        pass
    await answer(scope, receive, send)


async def answer_meanwhile(scope: Any, receive: Any, send: Any) -> None:
    """Reply with 200, and a part of the answer for each part of the body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (await receive()).get("more_body"):
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    ("app", "status"), [(answer, b"400"), (answer_at_the_end, b"400"), (answer_meanwhile, b"200")]
)
def test_a_body_that_is_no_http_ends_its_request(
    app: App, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Invalid HTTP in a body gives one answer, the request's own if it has begun, and no error in the log."""
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"

    async def scenario() -> bytes:
        async with serving(app, PATIENCE_S) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            begun = b""
            if app is answer_meanwhile:
                writer.write(sent)
                begun = await reader.readuntil(b"part")
            writer.write(b"no number\r\n" if begun else sent + b"no number\r\n")
            text = begun + await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            return text

    text = asyncio.run(scenario())
    assert text.startswith(b"HTTP/1.1 " + status)
    assert text.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("control", ["\n", "\r\n", "\x1b[31m", "\x00", "\x9b", "\u2028", "\u202e"])
def test_no_line_of_the_log_is_a_clients(control: str) -> None:
    """Line breaks, terminal sequences and bidirectional controls are escaped in log messages and their
    arguments."""
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s (path=%s)", ("1.2.3.4", f"/a{control}b"), None)
    assert EscapeControls().filter(record)
    assert control not in record.getMessage()
    assert record.getMessage() == f"1.2.3.4 (path=/a{control.encode('unicode_escape').decode()}b)"


def test_a_long_path_is_cut_in_the_log() -> None:
    """A long path is shortened in the log."""
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", ("a" * 10 * MAX_CHARS,), None)
    EscapeControls().filter(record)
    assert len(record.getMessage()) == MAX_CHARS
