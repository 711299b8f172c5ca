"""The two clients: they carry out the steps of `exchange`, one by blocking and one by awaiting.

Knows httpx. A client keeps connections open between calls and may be shared: `Client` by threads,
`AsyncClient` by tasks of one event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any, Generic, Self, TypeVar, Unpack

import httpx

from florence.client.exchange import (
    AttemptOutcome,
    CallOptions,
    ServiceCall,
    Step,
    build_analysis,
    exchange,
    read_error,
    read_failure,
    read_json,
    read_outcome,
)
from florence.client.many import AsyncPictureMap, PictureMap
from florence.client.pictures import Picture
from florence.client.tasks import CONCURRENCY, TaskMethods
from florence.errors import SettingsError
from florence.types.analysis import Analysis, TaskFailure
from florence.types.answer import TaskAnswer
from florence.types.environment import CLIENT_KEY
from florence.types.info import ServiceInfo
from florence.types.results import Detections, JsonValue, OcrRegions, Result, Segmentation, Tags, Text
from florence.types.tasks import TaskSpec

TIMEOUT_S = 310.0  # a little longer than the service's default limit, whose error says more
RETRIES = 4

TransportT = TypeVar("TransportT")

_READY = "v2/health/ready"
_METADATA = "v2"
_INFO = "info"
_PROBE_S = 10.0


class _Connected(Generic[TransportT]):
    """What both clients share: the checked arguments, and a client of httpx."""

    _http_type: Callable[..., Any]

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: TransportT | None = None,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise SettingsError(f"{url!r} is not a URL: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SettingsError(f"a service's URL is like http://localhost:8000, got {url!r}")
        if retries < 0:
            raise SettingsError(f"retries must be 0 or more, got {retries}")
        self._timeout_s, self._retries = timeout_s, retries
        key = api_key or os.environ.get(CLIENT_KEY)
        headers = ({"Authorization": f"Bearer {key}"} if key else {}) | dict(headers or {})
        # As many connections as calls: `map` and the caller's threads limit those.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY)
        self._http = self._http_type(
            base_url=url,
            headers=headers,
            timeout=_PROBE_S,
            limits=limits,
            transport=transport,
            verify=parsed.scheme == "https",  # reading the certificate authorities takes 18 ms and 0.8 MiB
        )

    def _exchange(self, call: ServiceCall) -> Generator[Step, AttemptOutcome, Any]:
        return exchange(call, retries=self._retries, timeout_s=self._timeout_s)


class Client(
    _Connected[httpx.BaseTransport],
    TaskMethods[
        TaskAnswer[Text],
        TaskAnswer[Tags],
        TaskAnswer[JsonValue],
        TaskAnswer[Detections],
        TaskAnswer[OcrRegions],
        TaskAnswer[Segmentation],
        TaskAnswer[Detections | Segmentation],
        TaskAnswer[Result],
        PictureMap[TaskAnswer[Result]],
    ],
):
    """A florence service at a URL; use it as a context manager, or call `close`.

    `api_key`: one of the service's API keys; None: the environment's FLORENCE_API_KEY, if set. `headers` go
    with every request, for example a token that a gateway needs. `timeout_s`: seconds for one call, its
    retries included. `retries`: further attempts when there is no connection, or the service answers 429 or
    503. Proxies are taken from the environment, as httpx does. `transport`: httpx's, for tests. Raises
    SettingsError for a malformed URL or negative `retries`.
    """

    _map_type = PictureMap
    _http_type = httpx.Client
    _http: httpx.Client

    def analyze(
        self, image: Picture, tasks: Iterable[TaskSpec], **options: Unpack[CallOptions]
    ) -> list[TaskAnswer[Result] | TaskFailure]:
        """Many tasks on one picture, which is sent and encoded once; the answers are in the tasks' order.

        `tasks`: names or tokens, or pairs of a task and its text or region. A task that fails has a
        `TaskFailure` in its place. Raises only where none could be answered.
        """
        analysis: Analysis = self._send(partial(build_analysis, image, tasks, options))
        return analysis.answers

    def ready(self) -> bool:
        """Whether the service has its model loaded and takes requests; Unreachable where nothing answers."""
        return self._get(_READY).status_code == httpx.codes.OK

    def server(self) -> dict[str, Any]:
        """What the service says about itself: name, version, extensions."""
        return _read_object(self._get(_METADATA))

    def info(self) -> ServiceInfo:
        """What runs there: checkpoint, device, dtype, limits; of the worker that answers."""
        return read_outcome(self._get(_INFO), ServiceInfo, _PROBE_S)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, build: Callable[[], ServiceCall]) -> Any:
        call = build()
        steps = self._exchange(call)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._carry_out(call, step))
        except StopIteration as end:
            return end.value

    def _carry_out(self, call: ServiceCall, step: Step) -> AttemptOutcome:
        try:
            if isinstance(step, httpx.Timeout):
                return self._http.post(call.path, data=call.fields, files=call.upload, timeout=step)
            time.sleep(step)
        except httpx.RequestError as error:
            return error
        return None

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._http.get(path)
        except httpx.RequestError as error:
            raise read_failure(error, _PROBE_S) from error


class AsyncClient(
    _Connected[httpx.AsyncBaseTransport],
    TaskMethods[
        Awaitable[TaskAnswer[Text]],
        Awaitable[TaskAnswer[Tags]],
        Awaitable[TaskAnswer[JsonValue]],
        Awaitable[TaskAnswer[Detections]],
        Awaitable[TaskAnswer[OcrRegions]],
        Awaitable[TaskAnswer[Segmentation]],
        Awaitable[TaskAnswer[Detections | Segmentation]],
        Awaitable[TaskAnswer[Result]],
        AsyncPictureMap[TaskAnswer[Result]],
    ],
):
    """`Client` for asyncio: every call is awaited. Pictures are read and encoded in threads."""

    _map_type = AsyncPictureMap
    _http_type = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def analyze(
        self, image: Picture, tasks: Iterable[TaskSpec], **options: Unpack[CallOptions]
    ) -> list[TaskAnswer[Result] | TaskFailure]:
        """As `Client.analyze`."""
        analysis: Analysis = await self._send(partial(build_analysis, image, tasks, options))
        return analysis.answers

    async def ready(self) -> bool:
        """Whether the service has its model loaded and takes requests; Unreachable where nothing answers."""
        return (await self._get(_READY)).status_code == httpx.codes.OK

    async def server(self) -> dict[str, Any]:
        """What the service says about itself: name, version, extensions."""
        return _read_object(await self._get(_METADATA))

    async def info(self) -> ServiceInfo:
        """As `Client.info`."""
        return read_outcome(await self._get(_INFO), ServiceInfo, _PROBE_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _send(self, build: Callable[[], ServiceCall]) -> Any:
        call = await asyncio.to_thread(build)
        steps = self._exchange(call)
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._carry_out(call, step))
        except StopIteration as end:
            return end.value

    async def _carry_out(self, call: ServiceCall, step: Step) -> AttemptOutcome:
        try:
            if isinstance(step, httpx.Timeout):
                return await self._http.post(call.path, data=call.fields, files=call.upload, timeout=step)
            await asyncio.sleep(step)
        except httpx.RequestError as error:
            return error
        return None

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path)
        except httpx.RequestError as error:
            raise read_failure(error, _PROBE_S) from error


def _read_object(response: httpx.Response) -> dict[str, Any]:
    content = read_json(response)
    if response.status_code != httpx.codes.OK or not isinstance(content, dict):
        raise read_error(response)
    return content
