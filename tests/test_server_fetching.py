"""`PictureFetcher` with fake hosts: its requests, its refusals, and its errors."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpcore
import pytest
from clocked import run_clocked, skip
from fake_web import BROKEN, HOST, PICTURE, PUBLIC, FakeWeb, answer, redirect
from waiting import PATIENCE_S

from florence.errors import (
    DeadlineExceeded,
    FetchFailed,
    FlorenceError,
    ImageTooLarge,
    NoPicture,
    Overloaded,
    UrlError,
)
from florence.server.fetching.connecting import system_resolver
from florence.server.fetching.fetcher import MAX_REDIRECTS, fetcher_of
from florence.server.http import bodies
from florence.server.http.bodies import BodyBudget
from florence.server.keys import CALLER
from florence.settings import Settings

URL = f"https://{HOST}/a.png?signature=x"


def ask(web: FakeWeb, url: str = URL, **settings: Any) -> bytes:
    """The bytes that a fetcher with these settings gets."""
    return bytes(asyncio.run(web.fetcher(**settings).fetch(url, timeout_s=PATIENCE_S)))


def test_the_checked_address_is_asked_by_the_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked address is connected to, with the name in TLS and the Host header; the environment's
    proxy is unused, and no cookies, credentials or encodings are sent."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.test:3128")
    web = FakeWeb(pages={URL: [answer()]})
    assert ask(web) == PICTURE
    assert (web.lookups, web.connections, web.greeted) == ([HOST], [(PUBLIC, 443)], [HOST])
    lines = web.requests[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a.png?signature=x http/1.1"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {
        "host", "user-agent", "accept", "accept-encoding", "connection",
    }  # fmt: skip
    assert "accept-encoding: identity" in lines
    assert web.closed == 1


def test_without_hosts_nothing_is_fetched() -> None:
    """A fetcher with default settings fetches nothing, and its error names the setting."""
    fetcher = fetcher_of(Settings())
    with pytest.raises(UrlError, match="FLORENCE_IMAGE_HOSTS"):
        asyncio.run(fetcher.fetch(URL, timeout_s=PATIENCE_S))


def test_a_name_is_resolved_once() -> None:
    """A name is resolved once a request, so a changed second answer (DNS rebinding) has no effect."""
    web = FakeWeb(pages={URL: [answer()]})
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    fetcher = web.fetcher()
    fetcher.resolve = rebinding
    assert asyncio.run(fetcher.fetch(URL, timeout_s=PATIENCE_S)) == PICTURE
    assert web.connections == [(PUBLIC, 443)]
    with pytest.raises(UrlError):  # in the next request the name has the local address
        asyncio.run(fetcher.fetch(URL, timeout_s=PATIENCE_S))
    assert len(web.connections) == 1


def test_a_redirect_back_is_resolved_again_and_refused_if_the_name_changed() -> None:
    """A redirect to the same host resolves it again, and is refused if the address is now local."""
    web = FakeWeb(pages={URL: [redirect("/b.png")]})
    answers = iter([[PUBLIC], ["169.254.169.254"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    fetcher = web.fetcher()
    fetcher.resolve = rebinding
    with pytest.raises(UrlError, match="redirects"):
        asyncio.run(fetcher.fetch(URL, timeout_s=PATIENCE_S))
    assert web.connections == [(PUBLIC, 443)]


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    """If one address refuses the connection, the next is tried."""
    web = FakeWeb(names={HOST: ["2606:4700::1", PUBLIC]}, pages={URL: [answer()]}, dead={"2606:4700::1"})
    assert ask(web) == PICTURE
    assert web.connections == [("2606:4700::1", 443), (PUBLIC, 443)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_within_the_list(status: int) -> None:
    """Relative and absolute redirects to allowed hosts are followed; each host is looked up and greeted by
    its own name."""
    other = "https://cdn.test/c.png"
    web = FakeWeb(
        names={HOST: [PUBLIC], "cdn.test": ["93.184.216.35"]},
        pages={
            URL: [redirect("b.png", status)],
            f"https://{HOST}/b.png": [redirect(other)],
            other: [answer()],
        },
    )
    assert ask(web, hosts=f"{HOST},cdn.test") == PICTURE
    assert web.greeted == [HOST, HOST, "cdn.test"]
    assert web.closed == 3


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.test/", "//evil.test/", "http://pictures.test/a.png", "https://127.0.0.1/",
        "file:///etc/passwd", "https://pictures.test:22/", "https://pictures.test@evil.test/", "https://evil.test\\@pictures.test/",
        "https://inside.test/", "https://2130706433/", "gopher://pictures.test/", "http://[",
        "\\\\evil.test\\a",
        "https://pictures.test/é", "https://[::ffff:127.0.0.1]/", "https://evil.test#@pictures.test",
    ],
)  # fmt: skip
def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    """A redirect to a host that is not allowed is not followed, and the error does not show where it
    leads."""
    web = FakeWeb(names={HOST: [PUBLIC], "inside.test": ["10.0.0.1"], "evil.test": [PUBLIC]})
    web.pages[URL] = [redirect(location)]
    with pytest.raises(UrlError, match="FLORENCE_IMAGE_HOSTS") as refused:
        ask(web, hosts=f"{HOST},inside.test")
    assert web.connections == [(PUBLIC, 443)]
    assert not any(word in str(refused.value) for word in ("evil", "inside", "127", "10.0"))


def test_redirects_without_end_are_few() -> None:
    """The number of redirects is limited."""
    web = FakeWeb(pages={URL: [redirect(URL)]})
    with pytest.raises(NoPicture, match=f"{MAX_REDIRECTS} redirects"):
        ask(web)
    assert len(web.connections) == MAX_REDIRECTS + 1


BOMB = gzip.compress(b"\0" * 10_000_000)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([answer(b"secret", 404)], NoPicture),
        ([answer(b"secret", 403)], NoPicture),
        ([answer(b"secret", 304)], NoPicture),
        ([answer(b"secret", 206)], NoPicture),
        ([answer(b"secret", 302)], NoPicture),  # leads nowhere
        ([answer(b"secret", 500)], FetchFailed),
        ([answer(b"secret", 503)], FetchFailed),
        ([answer(b"secret", 429)], FetchFailed),
        ([answer(b"<html>secret</html>", content_type="image/png")], NoPicture),
        ([answer(b"sec")], NoPicture),
        ([answer(b"")], NoPicture),
        ([answer(BOMB, content_encoding="gzip")], NoPicture),
        ([answer(PICTURE, content_encoding="br")], NoPicture),
        ([b"secret secret\r\n\r\n"], FetchFailed),
        ([b"HTTP/1.1 200 OK\r\nsecret: " + b"x" * 1_000_000], FetchFailed),
        ([b"HTTP/1.1 200 OK\r\nx: secret\x00\r\n\r\n"], FetchFailed),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nsecret"], FetchFailed),
        ([b""], FetchFailed),
        ([answer()[:-9]], FetchFailed),  # cut short
        ([answer()[:90], BROKEN], FetchFailed),
        ([httpcore.ReadTimeout("secret")], FetchFailed),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nsecret\r\n"], FetchFailed),
    ],
)
def test_an_answer_without_a_picture_is_an_error_that_repeats_none_of_it(
    pieces: list[Any], error: type[FlorenceError]
) -> None:
    """An answer without a picture is an error that shows nothing of the answer."""
    web = FakeWeb(pages={URL: pieces})
    with pytest.raises(error, match="image_url") as failed:
        ask(web)
    assert failed.type is error
    said = str(failed.value).lower()
    assert not any(word in said for word in ("secret", "html", "404", "403", "500", "73 65 63"))
    assert web.closed >= 1


@pytest.mark.parametrize("why", ["dead", "nameless", "empty"])
def test_a_host_that_is_not_there_is_a_bad_gateway(why: str) -> None:
    """A host that can't be resolved or reached is a 502."""
    web = FakeWeb(
        names={} if why == "nameless" else {HOST: [] if why == "empty" else [PUBLIC]}, dead={PUBLIC}
    )
    with pytest.raises(FetchFailed, match="image_url") as failed:
        ask(web)
    assert (failed.value.status, "secret" in str(failed.value)) == (502, False)


def chunked(*parts: bytes) -> list[bytes]:
    """A chunked answer of these parts."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]


def test_a_picture_may_come_in_chunks_or_until_the_end() -> None:
    """A picture may come in chunks, or without a length until the connection ends."""
    web = FakeWeb(pages={URL: chunked(PICTURE[:7], PICTURE[7:])})
    assert ask(web) == PICTURE
    web.pages[URL] = [b"HTTP/1.0 200 OK\r\n\r\n", PICTURE[:3], PICTURE[3:]]
    assert ask(web) == PICTURE


def test_no_more_bytes_are_read_than_a_picture_may_have() -> None:
    """A picture over the limit is refused by its Content-Length before a byte is read, or else while it is
    read."""
    most = len(PICTURE) + 10
    declared = answer(PICTURE + bytes(11))
    head, _, _ = declared.partition(b"\r\n\r\n")
    endless = [*chunked(PICTURE)[:-1], *chunked(*[bytes(100)] * 1000)[1:]]
    for pieces in ([head + b"\r\n\r\n", AssertionError("a byte too many")], endless):
        web = FakeWeb(pages={URL: list(pieces)})
        with pytest.raises(ImageTooLarge, match="FLORENCE_MAX_IMAGE_BYTES"):
            ask(web, max_bytes=most)
    exact = FakeWeb(pages={URL: [answer(PICTURE)]})
    assert ask(exact, max_bytes=len(PICTURE)) == PICTURE


def test_what_is_no_picture_is_not_read_to_its_end() -> None:
    """Reading stops when the first bytes are not a picture."""
    web = FakeWeb(pages={URL: [*chunked(b"no picture, much longer")[:-1], AssertionError("read on")]})
    with pytest.raises(NoPicture):
        ask(web)


@pytest.mark.parametrize(
    ("timeout_s", "arrive_s", "said"), [(60, 600, "request.s time limit"), (600, 60, "BODY_TIMEOUT_S")]
)
def test_a_host_that_never_answers_costs_the_requests_time_only(
    timeout_s: float, arrive_s: float, said: str
) -> None:
    """A host that never answers is a 504 that names the limit, and its connection is closed."""

    async def stuck() -> bytes:
        skip(60)
        await asyncio.Event().wait()
        return b""

    web = FakeWeb(pages={URL: [answer()[:60], stuck]})
    fetcher = web.fetcher(arrive_s=arrive_s)

    async def late() -> None:
        with pytest.raises(DeadlineExceeded, match=said):
            await fetcher.fetch(URL, timeout_s=timeout_s)
        assert (web.closed, fetcher.running) == (1, 0)

    run_clocked(late())


def test_a_cancelled_request_ends_its_fetch_while_the_loop_runs_on() -> None:
    """Cancelling during the lookup or the read closes the connection and frees the place."""

    async def cancelled(web: FakeWeb) -> None:
        fetcher, reached = web.fetcher(max_fetches=1), asyncio.Event()

        async def stuck() -> bytes:
            reached.set()
            await asyncio.Event().wait()
            return b""

        async def resolving(host: str, port: int) -> list[str]:
            return [(await stuck()).decode()]

        if URL in web.pages:
            web.pages[URL] = [answer()[:50], stuck]
        else:
            fetcher.resolve = resolving
        task = asyncio.create_task(fetcher.fetch(URL, timeout_s=PATIENCE_S))
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert web.closed == len(web.connections)
        web.pages[URL] = [answer()]
        fetcher.resolve = web.resolve
        assert await fetcher.fetch(URL, timeout_s=PATIENCE_S) == PICTURE

    asyncio.run(cancelled(FakeWeb()))
    asyncio.run(cancelled(FakeWeb(pages={URL: []})))


def test_a_pictures_bytes_count_against_the_budget_of_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched bytes count in the budget of bodies until the request ends; without room the request is
    refused."""
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.01)

    async def counted() -> None:
        budget = BodyBudget(len(PICTURE) + 5, PATIENCE_S)
        body = budget.begin()
        web = FakeWeb(pages={URL: [answer()]})
        await web.fetcher().fetch(URL, timeout_s=PATIENCE_S, body=body)
        assert budget.free == 5
        with pytest.raises(Overloaded, match="FLORENCE_BODY_MEMORY_BYTES"):
            await web.fetcher().fetch(URL, timeout_s=PATIENCE_S, body=budget.begin())
        budget.end(body)
        assert budget.free >= len(PICTURE)

    asyncio.run(counted())


def test_fetches_at_once_are_bounded_for_all_and_for_one_key() -> None:
    """Concurrent fetches are limited in total and for one key."""

    async def crowded() -> None:
        gate = asyncio.Event()
        web = FakeWeb(pages={URL: [gate, answer()]})
        fetcher = web.fetcher(max_fetches=2, max_fetches_of_key=1)

        async def one(key: str) -> bytes:
            CALLER.set(key)
            return bytes(await fetcher.fetch(URL, timeout_s=PATIENCE_S))

        first = asyncio.create_task(one("ann"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="'ann'"):
            await asyncio.create_task(one("ann"))
        second = asyncio.create_task(one("bob"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="FLORENCE_MAX_QUEUE"):
            await asyncio.create_task(one("eve"))
        gate.set()
        assert await asyncio.gather(first, second) == [PICTURE, PICTURE]

    asyncio.run(crowded())


def test_the_systems_resolver_does_not_hold_the_loop() -> None:
    """The system's resolver runs in another thread, and resolves a literal address without network."""
    assert asyncio.run(system_resolver()("127.0.0.1", 80)) == ["127.0.0.1"]
