"""Client and AsyncClient with a fake transport: retries, waits and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from typing import Any

import httpx
import pytest

from florence.client import AsyncClient, Client, ConnectionLost, UnexpectedReply, Unreachable
from florence.client.exchange import (
    AttemptOutcome,
    CallOptions,
    build_call,
    exchange,
    read_failure,
)
from florence.errors import (
    DeadlineExceeded,
    EngineError,
    FlorenceError,
    ImageTooLarge,
    NotFound,
    RequestError,
    SettingsError,
    TaskError,
    Unavailable,
)
from florence.types.answer import TaskAnswer
from florence.types.results import Text

URL = "http://florence.test/prefix"
ANSWER = {
    "task": "<CAPTION>",
    "result": {"kind": "text", "text": "a café", "score": 0.5},
    "image_size": {"width": 8, "height": 6},
    "finish_reason": "stop",
    "usage": {"picture_tokens": 1, "prompt_tokens": 2, "generated_tokens": 3},
    "timings": {"queue_s": 0, "encode_s": 0, "decode_s": 0, "total_s": 0},
    "checkpoint": "fake",
}
Handler = Callable[[httpx.Request], httpx.Response]
Ask = Callable[..., TaskAnswer[Text]]


def ask_waiting(handler: Handler, options: CallOptions, **settings: Any) -> TaskAnswer[Text]:
    """Ask for a caption with a Client."""
    with Client(URL, transport=httpx.MockTransport(handler), **settings) as client:
        return client.caption(b"picture", **options)


def ask_awaiting(handler: Handler, options: CallOptions, **settings: Any) -> TaskAnswer[Text]:
    """Ask for a caption with an AsyncClient."""

    async def ask() -> TaskAnswer[Text]:
        async with AsyncClient(URL, transport=httpx.MockTransport(handler), **settings) as client:
            return await client.caption(b"picture", **options)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_waiting, ask_awaiting])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A function that asks for a caption with one of the two clients."""
    made: Ask = request.param
    return made


class Replies:
    """A transport that gives the replies in turn, and then the last one again; it records the requests."""

    def __init__(self, *replies: httpx.Response | type[httpx.TransportError]) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, httpx.Response):  # a copy each time: clients close a reply after reading it
            return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)
        raise reply("nothing listens there")


def busy(status: int = 503, **headers: str) -> httpx.Response:
    """A reply of a busy service."""
    return httpx.Response(status, json={"error": "the queue is full"}, headers=headers)


def test_the_answer_is_of_the_tasks_own_type(ask: Ask) -> None:
    """A caption's result is a Text, and the request goes to the task's path below the URL's own path."""
    replies = Replies(httpx.Response(200, json=ANSWER))
    answer = ask(replies, {})
    assert isinstance(answer.result, Text)
    assert answer.result.text == "a café"
    assert str(replies.requests[0].url) == URL + "/caption"


@pytest.mark.parametrize("status", [429, 503])
def test_a_request_that_was_not_accepted_is_sent_again(ask: Ask, status: int) -> None:
    """Busy replies with Retry-After are followed by retries, and the caller gets only the answer."""
    later = {"Retry-After": "0"}
    replies = Replies(busy(status, **later), busy(status, **later), httpx.Response(200, json=ANSWER))
    assert ask(replies, {}).result.text == "a café"
    assert len(replies.requests) == 3
    assert all(b"picture" in request.content for request in replies.requests)


def test_a_missing_connection_is_tried_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed connection is retried."""
    monkeypatch.setattr("florence.client.exchange.FIRST_WAIT_S", 0.001)
    replies = Replies(httpx.ConnectError, httpx.ConnectTimeout, httpx.Response(200, json=ANSWER))
    assert ask(replies, {}).result.text == "a café"
    assert len(replies.requests) == 3


def test_retries_end_after_the_given_number(ask: Ask) -> None:
    """After the first try and `retries` more, the last reply's message and Retry-After are raised."""
    replies = Replies(
        busy(**{"Retry-After": "0"}), busy(**{"Retry-After": "0"}), busy(**{"Retry-After": "7"})
    )
    with pytest.raises(Unavailable, match="the queue is full") as caught:
        ask(replies, {}, retries=2)
    assert len(replies.requests) == 3
    assert caught.value.retry_after_s == 7


def test_no_wait_beyond_the_time_given(ask: Ask) -> None:
    """The client does not wait for a Retry-After beyond the call's own time limit."""
    replies = Replies(busy(**{"Retry-After": "600"}))
    with pytest.raises(Unavailable):
        ask(replies, {"timeout_s": 500})
    assert len(replies.requests) == 1
    _, waits = steps_until([busy(**{"Retry-After": "600"})], timeout_s=500)
    assert waits == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestError), (413, ImageTooLarge), (404, NotFound), (500, EngineError), (504, DeadlineExceeded)],
)
def test_each_status_has_its_exception_with_the_servers_words(
    ask: Ask, status: int, kind: type[FlorenceError]
) -> None:
    """Each error status has its own exception with the server's message, and is not retried."""
    replies = Replies(httpx.Response(status, json={"error": "what to change"}))
    with pytest.raises(kind, match="what to change"):
        ask(replies, {})
    assert len(replies.requests) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (httpx.Response(502, text="<html>Bad Gateway"), "502.*<html>Bad Gateway"),
        (httpx.Response(403, json={"error": "no token"}), "403.*no token"),
        (httpx.Response(308, headers={"location": "https://elsewhere"}), "308.*https://elsewhere"),
        (httpx.Response(500, text="oops"), "500.*oops"),
        (httpx.Response(500, text="[" * 9000), "500.*\\[\\[\\["),
        (httpx.Response(200, text="<html>Welcome"), "200.*<html>Welcome"),
        (httpx.Response(200, json={**ANSWER, "result": {"kind": "boxes"}}), "200.*result"),
    ],
)
def test_another_program_at_the_url_is_recognised(ask: Ask, reply: httpx.Response, words: str) -> None:
    """Replies that this service never gives are quoted with their status."""
    with pytest.raises(UnexpectedReply, match=words) as caught:
        ask(Replies(reply), {})
    assert caught.value.reply_status == reply.status_code


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ReadTimeout, DeadlineExceeded),
        (httpx.WriteTimeout, DeadlineExceeded),
        (httpx.ReadError, ConnectionLost),
        (httpx.RemoteProtocolError, ConnectionLost),
    ],
)
def test_a_request_that_may_have_been_taken_is_not_sent_again(
    ask: Ask, failure: type[httpx.TransportError], kind: type[FlorenceError]
) -> None:
    """A request that the service may have accepted is not sent again."""
    replies = Replies(failure)
    with pytest.raises(kind, match=r"florence\.test"):
        ask(replies, {})
    assert len(replies.requests) == 1


def test_a_missing_server_is_unreachable(ask: Ask) -> None:
    """A missing server raises Unreachable, which is an Unavailable."""
    with pytest.raises(Unreachable, match=r"florence\.test.*can't be reached: nothing listens there"):
        ask(Replies(httpx.ConnectError), {}, retries=0)
    assert issubclass(Unreachable, Unavailable)


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        (httpx.RemoteProtocolError("illegal request line"), "is it the gRPC port?"),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "http, not https?"),
    ],
)
def test_a_wrong_port_or_scheme_is_guessed(failure: httpx.RequestError, hint: str) -> None:
    """Errors that indicate a wrong port or scheme get a hint, others do not."""
    failure.request = httpx.Request("GET", "https://florence.test/")
    assert hint in str(read_failure(failure, 1.0))
    failure.args = ("it broke",)
    assert hint not in str(read_failure(failure, 1.0))


def test_headers_go_along(ask: Ask) -> None:
    """Given headers are sent."""
    replies = Replies(httpx.Response(200, json=ANSWER))
    ask(replies, {}, headers={"Authorization": "Bearer abc"})
    assert replies.requests[0].headers["authorization"] == "Bearer abc"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "http://[::1"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_wrong_url_is_refused_before_anything_is_sent(client: type[Client], url: str) -> None:
    """A wrong URL is refused when the client is made."""
    with pytest.raises(SettingsError, match="URL"):
        client(url)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_wrong_timeout_is_refused(ask: Ask, timeout_s: float) -> None:
    """A time limit that is not a positive finite number is refused before any request."""
    replies = Replies(httpx.Response(200, json=ANSWER))
    with pytest.raises(RequestError, match="timeout_s"):
        ask(replies, {"timeout_s": timeout_s})
    assert not replies.requests


@pytest.mark.parametrize(
    ("given", "words"), [({"region": 5}, "a region is"), ({"region": [object()]}, "region can't be sent")]
)
def test_what_can_not_be_written_is_refused(given: dict[str, Any], words: str) -> None:
    """A region that can't be sent is refused."""
    with pytest.raises(RequestError, match=words):
        build_call(b"picture", "region_to_ocr", None, options={}, **given)


def test_an_unknown_task_is_refused_before_anything_is_sent() -> None:
    """An unknown task is refused with similar names."""
    with (
        Client(URL, transport=httpx.MockTransport(Replies(busy()))) as client,
        pytest.raises(TaskError, match="<OCR_WITH_REGION>"),
    ):
        client.run(b"picture", "captions")


def steps_until(
    outcomes: list[AttemptOutcome], retries: int = 9, timeout_s: float = 1e6
) -> tuple[list[httpx.Timeout], list[float]]:
    """The attempts and waits that `exchange` asks for when its attempts have these outcomes."""
    call = build_call(b"picture", "caption", None, None, {})
    steps = exchange(call, retries=retries, timeout_s=timeout_s)
    attempts: list[httpx.Timeout] = []
    waits: list[float] = []
    outcome: AttemptOutcome = None
    for _ in count():
        try:
            step = steps.send(outcome)
        except (StopIteration, Unavailable):
            return attempts, waits
        if isinstance(step, httpx.Timeout):
            attempts.append(step)
            outcome = outcomes.pop(0)
        else:
            waits.append(step)
            outcome = None
    raise AssertionError


def test_waits_double_up_to_a_limit() -> None:
    """Without Retry-After the waits are half to all of 0.5, 1, 2, ... seconds, at most 30."""
    _, waits = steps_until([busy() for _ in range(10)])
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert len(waits) == len(longest)
    assert all(most / 2 <= wait_s <= most for wait_s, most in zip(waits, longest, strict=True))


NO_DATES = ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", f"Mon, 01 Jan 2020 00:00:00 +{'9' * 20}"]


def test_retry_after_may_be_seconds_or_a_date() -> None:
    """Retry-After is read as seconds and as a date; any other value is ignored."""
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=5000), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=50), usegmt=True)
    replies: list[AttemptOutcome] = [
        busy(**{"Retry-After": value}) for value in ("3", when, past, "soon", "-1", "", *NO_DATES)
    ]
    _, waits = steps_until([*replies, httpx.Response(200, json=ANSWER)])
    assert waits[0] == 3
    assert 4000 < waits[1] <= 5000
    assert waits[2] == 0
    assert all(2 <= wait_s <= 30 for wait_s in waits[3:])


def test_an_attempt_has_only_the_time_that_is_left() -> None:
    """Each attempt gets only the remaining time."""
    attempts, _ = steps_until([busy(**{"Retry-After": "0"}), httpx.Response(200, json=ANSWER)], timeout_s=5)
    assert [attempt.connect is not None for attempt in attempts] == [True, True]
    assert all(attempt.read is not None and attempt.read <= 5 for attempt in attempts)


@pytest.mark.parametrize("text", ['"EXIT"', "null", " 12 ", "two\nlines", "eine große Katze 猫"])
def test_a_text_is_sent_as_it_is(text: str) -> None:
    """A text is sent unchanged, not as JSON."""
    call = build_call(b"picture", "caption_to_phrase_grounding", text, None, {"num_beams": 2})
    assert call.fields == {"text": text, "num_beams": "2"}


@pytest.mark.parametrize("text", ["half \ud800", 5])
def test_a_text_that_has_no_bytes_is_refused_before_it_is_sent(text: Any) -> None:
    """A text that can't be encoded is refused."""
    with pytest.raises(RequestError, match="text can't be sent"):
        build_call(b"picture", "caption_to_phrase_grounding", text, None, {})
