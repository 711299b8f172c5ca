"""One call of the service over HTTP, as plain functions: build the request, read the reply, when to retry.

No connection is opened here: `exchange` yields the next step, which the two clients carry out, one by
blocking and one by awaiting.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import quote as percent_encoded

import httpx
from pydantic import BaseModel, ValidationError

from florence.client.errors import ConnectionLost, UnexpectedReply, Unreachable
from florence.client.pictures import ImageUrl, Picture, picture_bytes
from florence.errors import (
    DeadlineExceeded,
    EngineError,
    FetchFailed,
    FlorenceError,
    ImageTooLarge,
    NoPicture,
    NotFound,
    RequestError,
    TaskError,
    Unauthorized,
    Unavailable,
    quote,
)
from florence.types.analysis import Analysis
from florence.types.answer import TaskAnswer, answer_type
from florence.types.invalid import reason_of
from florence.types.options import TEXT_FIELDS, RequestKeywords, check_timeout
from florence.types.regions import Region
from florence.types.results import Result
from florence.types.tasks import TASKS, TASKS_PATH, AnswerAs, Input, Kind, Task, TaskSpec, task_pairs

CONNECT_S: Final = 10.0  # a server that runs accepts a connection at once
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
AnswerT = TypeVar("AnswerT", bound=BaseModel)
_LONGEST_QUOTE: Final = 300  # characters of a strange reply that a message repeats

_ERRORS: Final[Mapping[int, type[FlorenceError]]] = MappingProxyType(
    {
        400: RequestError,
        401: Unauthorized,
        413: ImageTooLarge,
        404: NotFound,
        422: NoPicture,
        500: EngineError,
        502: FetchFailed,
        504: DeadlineExceeded,
    }
)


class CallOptions(RequestKeywords, total=False):
    """Options of one call: those of `RequestKeywords`, and a time limit.

    `timeout_s`: seconds until `DeadlineExceeded`, retries and the waits between them included; left out or
    None: the client's.
    """

    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class ServiceCall:
    """One request. `path`: below the service's URL. `picture`: its bytes, or a URL for the service to fetch.
    `fields`: the form's. `answer`: the type of the reply's body. `timeout_s`: None for the client's."""

    path: str
    picture: bytes | ImageUrl
    fields: Mapping[str, str]
    answer: type[BaseModel]
    timeout_s: float | None

    @property
    def upload(self) -> dict[str, tuple[str | None, bytes | str]]:
        """The picture as httpx takes it; an entry without a file name is a plain field of the form."""
        if isinstance(self.picture, ImageUrl):
            return {"image_url": (None, self.picture.url)}
        return {"image": ("picture", self.picture)}


Step = httpx.Timeout | float
"""What to do next: post the request within a time limit, or wait for this many seconds."""
AttemptOutcome = httpx.Response | httpx.RequestError | None
"""The outcome of an attempt; None after a wait."""


def build_call(
    picture: Picture, task: str | Task, text: str | None, region: Region | None, options: CallOptions
) -> ServiceCall:
    """The request of one task on one picture. `task`: a name such as "caption", or a token such as "<OD>".

    Text, region and options are checked by the service. Raises TaskError for an unknown task, ImageError for
    a picture that can't be read, RequestError for what can't be sent.
    """
    asked = TASKS.resolve(task)
    given = {"text": text, "region": _plain_region(region)}
    if asked.is_prompt:
        given |= {"prompt": asked.prompt, "answer_as": asked.kind.value}
    return _call(asked.path, picture, given, options, answer_type(asked.kind))


def build_named_call(
    picture: Picture,
    name: str,
    text: str | None,
    region: Region | None,
    answer_as: Kind | AnswerAs | None,
    options: CallOptions,
) -> ServiceCall:
    """The request of a task that the service knows by this name or token. `answer_as`: the kind of its
    answer; None: any. Raises what `build_call` does, except for an unknown task: the service reports it."""
    if not isinstance(name, str) or not name.strip("./"):
        raise TaskError(f"a task is its name or token, got {quote(name)}")
    answer = TaskAnswer[Result] if answer_as is None else answer_type(Kind(answer_as))
    given = {"text": text, "region": _plain_region(region)}
    return _call(f"{TASKS_PATH}/{percent_encoded(name, safe='')}", picture, given, options, answer)


def build_analysis(picture: Picture, tasks: Iterable[TaskSpec], options: CallOptions) -> ServiceCall:
    """The request of many tasks on one picture. Raises what `build_call` does, except for an unknown task:
    the service reports it."""
    requests = [_task_request(task, given) for task, given in task_pairs(tasks)]
    return _call("analyze", picture, {"tasks": requests}, options, Analysis)


def _task_request(task: str | Task, given: Region | None) -> dict[str, Any]:
    known = task if isinstance(task, Task) else TASKS.find(task)
    # For a task that only the service knows, numbers are a region.
    is_region = not isinstance(given, str) if known is None else known.input is Input.REGION
    wanted, value = ("region", _plain_region(given)) if is_region else ("text", given)
    request: dict[str, Any] = {"task": task if known is None else known.token}
    return request if value is None else request | {wanted: value}


def _call(
    path: str, picture: Picture, given: dict[str, Any], options: CallOptions, answer: type[BaseModel]
) -> ServiceCall:
    given |= {name: value for name, value in options.items() if name != "timeout_s"}
    fields = {name: _field(name, value) for name, value in given.items() if value is not None}
    timeout_s = options.get("timeout_s")
    check_timeout(timeout_s)
    sent = picture if isinstance(picture, ImageUrl) else picture_bytes(picture)
    return ServiceCall(path, sent, fields, answer, timeout_s)


def exchange(call: ServiceCall, *, retries: int, timeout_s: float) -> Generator[Step, AttemptOutcome, Any]:
    """Yields the next step until there is an answer, which the generator returns.

    Send it the outcome of each attempt. Only requests that the server did not accept are retried: no
    connection, 429 and 503; after the seconds of Retry-After, else after a wait that doubles. Raises
    FlorenceError.
    """
    timeout_s = call.timeout_s or timeout_s
    end = time.monotonic() + timeout_s
    for retry in itertools.count():
        left_s = max(end - time.monotonic(), 0.001)
        outcome = yield httpx.Timeout(left_s, connect=min(left_s, CONNECT_S))
        try:
            return read_outcome(outcome, call.answer, timeout_s)
        except Unavailable as error:
            wait_s = _wait_s(error, outcome, retry)
            if retry >= retries or time.monotonic() + wait_s >= end:
                raise
        yield wait_s


def read_outcome(outcome: AttemptOutcome, answer: type[AnswerT], timeout_s: float) -> AnswerT:
    """The answer in the outcome; without one, raises the matching error with the server's message."""
    if isinstance(outcome, httpx.Response):
        if outcome.status_code != httpx.codes.OK:
            raise read_error(outcome)
        try:
            return answer.model_validate_json(outcome.content)
        except ValidationError as error:
            reason = reason_of(dict(error.errors()[0]), whole="the whole body")
            raise UnexpectedReply(
                f"{outcome.url} answered 200 without an answer to this request: {reason}; "
                f"it begins {quote(outcome.text, _LONGEST_QUOTE)}",
                outcome.status_code,
            ) from None
    raise read_failure(outcome, timeout_s)


def read_error(response: httpx.Response) -> FlorenceError:
    """The error that a reply stands for, with the server's message."""
    status, words = response.status_code, _words(response)
    if status in (429, 503):
        asked_s = _retry_after_s(response)
        return Unavailable(words or "the service is busy", retry_after_s=1.0 if asked_s is None else asked_s)
    if status == 404:
        return NotFound(f"{response.url}: {words or 'not found'}")
    if status in _ERRORS and words:
        return _ERRORS[status](words)
    target = response.headers.get("location")
    said = f"it redirects to {target}" if target else words or quote(response.text, _LONGEST_QUOTE)
    return UnexpectedReply(f"{response.url} answered {status}: {said}", status)


def read_failure(error: httpx.RequestError | None, timeout_s: float) -> FlorenceError:
    """The error that a failed connection stands for. `timeout_s`: the whole call's limit, for the message."""
    url = "the service" if error is None else str(error.request.url)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        hint = " (does it speak http, not https?)" if "WRONG_VERSION_NUMBER" in str(error) else ""
        return Unreachable(f"{url} can't be reached: {error or 'no connection in time'}{hint}")
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{url} did not answer within {timeout_s:g} s")
    hint = " (is it the gRPC port?)" if re.match("illegal (request|status) line", str(error)) else ""
    reason = f"{error or 'no reason given'}{hint}"
    return ConnectionLost(f"the connection to {url} broke before the answer: {reason}")


def _wait_s(error: Unavailable, outcome: AttemptOutcome, retry: int) -> float:
    """Seconds until the next try: what the server asks for, else doubled each time, with jitter."""
    if isinstance(outcome, httpx.Response) and _retry_after_s(outcome) is not None:
        return error.retry_after_s
    longest = min(math.ldexp(FIRST_WAIT_S, retry), LONGEST_WAIT_S)
    return longest * random.uniform(0.5, 1.0)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds from now that Retry-After asks for, as seconds or as a date; None without it, or where it is
    neither."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # OverflowError: a year or a zone that no date has
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def read_json(response: httpx.Response) -> Any:
    """The body's JSON value; None where it is not JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):  # RecursionError: lists in lists
        return None


def _words(response: httpx.Response) -> str:
    """The text of `{"error": "..."}`; empty where the body is something else."""
    content = read_json(response)
    words = content.get("error") if isinstance(content, dict) else None
    return words if isinstance(words, str) else ""


def _plain_region(region: Region | None) -> list[float] | str | None:
    """The region as JSON can hold it; an array of numpy becomes a list. Raises RequestError."""
    if region is None or isinstance(region, str):
        return region
    try:
        return list(region)
    except TypeError:
        raise RequestError(
            f"a region is x1, y1, x2, y2 in pixels or four <loc_n> as text, got {region!r}"
        ) from None


def _field(name: str, value: object) -> str:
    """A form's field: text as it is, all else as JSON. Raises RequestError for what has no such form."""
    try:
        if name in TEXT_FIELDS:
            if not isinstance(value, str):
                raise TypeError(f"expected a str, got {value!r}")
            value.encode()  # half of a surrogate pair has no bytes
            return value
        return json.dumps(value, default=float)  # json can't write numpy's numbers
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} can't be sent: {error}") from None
