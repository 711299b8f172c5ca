"""A picture from a URL: GET over HTTP/1.1 with few redirects, each of which is checked like the first URL.

A host's name is resolved once, and the connection goes to an address that was checked, so that a second
answer of the resolver can't lead elsewhere (DNS rebinding). Proxies of the environment, cookies and
credentials are not used. An error does not disclose what a host answered; the log has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Final

import httpcore
import httpx

from florence import __version__
from florence.errors import (
    DeadlineExceeded,
    FetchFailed,
    FlorenceError,
    ImageTooLarge,
    NoPicture,
    Overloaded,
    UrlError,
    quote,
)
from florence.images.headers import FIRST_BYTES, FORMATS, is_picture
from florence.runtime.shares import Shares
from florence.server.fetching.allowed import OFF, Address, AllowList, read_address, read_allow_list
from florence.server.fetching.connecting import CheckedAddresses, Resolve, system_resolver
from florence.server.fetching.urls import PictureUrl, parse_url
from florence.server.http.bodies import Body
from florence.server.keys import caller
from florence.server.log import logger
from florence.server.v2.compression import PLAIN
from florence.settings import Settings

MAX_REDIRECTS: Final = 3
CONNECT_S: Final = 5.0
"""Seconds for one address to take a connection, and for TLS."""
NO_PICTURE: Final = "image_url's host has no picture at this URL, or refuses it to this service"
NOT_REACHED: Final = "image_url's host can't be reached, or broke the connection"
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))


@dataclass(eq=False, kw_only=True)
class PictureFetcher:
    """Fetches pictures for the requests of one worker, on one event loop.

    `max_bytes`: of a picture. `arrive_s`: seconds for it to arrive. `max_fetches`: pictures that are fetched
    at a time. `max_fetches_of_key`: of these, for one API key. `resolve`, `connector` and `tls` are
    arguments, so that tests need no network.
    """

    allowed: AllowList
    max_bytes: int
    arrive_s: float
    max_fetches: int
    max_fetches_of_key: int
    resolve: Resolve = field(default_factory=system_resolver)
    connector: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)
    tls: SSLContext | None = None

    def __post_init__(self) -> None:
        self.running = 0
        self._shares = Shares(self.max_fetches_of_key, caller)

    async def fetch(self, url: str, *, timeout_s: float, body: Body | None = None) -> bytearray:
        """The encoded picture at a URL. `timeout_s`: seconds left of the request's time. `body`: the
        request's share of the body budget, to which the picture's bytes are added; None: not counted.

        Raises UrlError where the URL is not allowed, NoPicture where the host has no picture there,
        FetchFailed where it can't be reached or fails, ImageTooLarge, DeadlineExceeded, Overloaded.
        """
        if not self.allowed.rules:
            raise UrlError(OFF)
        limit_s = min(timeout_s, self.arrive_s)
        with self._one_more():
            try:
                async with asyncio.timeout(limit_s) as limit:
                    return await self._follow(parse_url(url), body)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise self._late(timeout_s) from None

    def _late(self, timeout_s: float) -> DeadlineExceeded:
        if timeout_s <= self.arrive_s:
            return DeadlineExceeded("the picture at image_url did not arrive within the request's time limit")
        return DeadlineExceeded(
            f"the picture at image_url did not arrive within {self.arrive_s:g} s (FLORENCE_BODY_TIMEOUT_S)"
        )

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        owner, fetch = self._shares.owner(), object()
        self._shares.check(owner, lambda _: 1.0)
        if self.running >= self.max_fetches:
            raise Overloaded(
                f"{self.running} pictures are being fetched, which is the limit (FLORENCE_MAX_QUEUE); come "
                "back in 1 s"
            )
        self.running += 1
        self._shares.enter(owner, fetch)
        try:
            yield
        finally:
            self.running -= 1
            self._shares.leave(owner, fetch)

    async def _follow(self, url: PictureUrl, body: Body | None) -> bytearray:
        addresses = await self._check(url)
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._get(url, addresses, body)
            if isinstance(found, bytearray):
                return found
            url, addresses = await self._redirected(url, found)
        raise NoPicture(f"image_url leads to more than {MAX_REDIRECTS} redirects")

    async def _redirected(self, url: PictureUrl, location: str) -> tuple[PictureUrl, Sequence[Address]]:
        """The target of a redirect, and its addresses, both checked. The error does not name the target: that
        would disclose the host's answer."""
        try:
            target = url.joined(location)
            if url.scheme == "https" and target.scheme == "http":
                raise UrlError("a redirect from https to http")
            return target, await self._check(target)
        except (UrlError, ValueError) as error:
            logger.info("a redirect of %s is refused: %s", url.authority, error)
            raise UrlError(
                "image_url redirects to a URL that is not allowed (FLORENCE_IMAGE_HOSTS, "
                "FLORENCE_IMAGE_NETWORKS), or from https to http"
            ) from None

    async def _check(self, url: PictureUrl) -> Sequence[Address]:
        """The addresses of the URL's host. Raises UrlError unless the host and all of them are allowed,
        FetchFailed where there are none."""
        self.allowed.check_host(url)
        try:
            addresses = [read_address(url.host)]
        except ValueError:  # a name
            addresses = await self._resolved(url)
        refused = [address for address in addresses if not self.allowed.allows(address)]
        if refused:
            logger.info("%s has an address that is not public: %s", url.authority, refused[0])
            raise UrlError(
                "image_url's host has an address that is not public; FLORENCE_IMAGE_NETWORKS must name its "
                "network"
            )
        return addresses

    async def _resolved(self, url: PictureUrl) -> list[Address]:
        try:
            found = [read_address(text) for text in await self.resolve(url.host, url.port)]
        except (OSError, ValueError) as error:  # ValueError: an invalid zone or name
            logger.info("%s has no address: %s", url.authority, quote(str(error)))
            found = []
        if not found:
            raise FetchFailed("the name of image_url's host has no address")
        return found

    async def _get(self, url: PictureUrl, addresses: Sequence[Address], body: Body | None) -> bytearray | str:
        """The picture, or a redirect's Location."""
        host = url.host.encode("ascii")
        scheme = url.scheme.encode("ascii")
        target = httpcore.URL(scheme=scheme, host=host, port=url.port, target=url.target.encode("ascii"))
        connection = httpcore.AsyncHTTPConnection(
            target.origin, self.tls, network_backend=CheckedAddresses(self.connector, addresses)
        )
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.authority,
            "User-Agent": f"florence/{__version__}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        try:
            more = {"timeout": {"connect": CONNECT_S}}
            async with connection.stream("GET", target, headers=headers, extensions=more) as response:
                return await self._read(url, response, body)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            logger.info("%s gave no picture: %s: %s", url.authority, type(error).__name__, quote(str(error)))
            raise FetchFailed(NOT_REACHED) from None
        finally:
            await connection.aclose()

    async def _read(self, url: PictureUrl, response: httpcore.Response, body: Body | None) -> bytearray | str:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        location = headers.get(b"location")
        if response.status in _REDIRECTS and location is not None:
            return location
        if response.status != 200:
            logger.info("%s answered %d where a picture was expected", url.authority, response.status)
            raise _failure(response.status)
        if headers.get(b"content-encoding", "").strip().lower() not in PLAIN:
            raise NoPicture("image_url's host sends the picture compressed, which was not requested")
        length = headers.get(b"content-length", "").strip()
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            raise self._too_large()
        picture = bytearray()
        async for piece in response.aiter_stream():
            if len(picture) + len(piece) > self.max_bytes:
                raise self._too_large()
            if body is not None:
                await body.grow(len(piece))
            picture += piece
            if len(picture) >= FIRST_BYTES and not is_picture(bytes(picture[:FIRST_BYTES])):
                break
        if not is_picture(bytes(picture[:FIRST_BYTES])):
            raise NoPicture(f"image_url leads to no picture in a known format: {FORMATS}")
        return picture

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge(
            f"the picture at image_url has more than the {self.max_bytes} bytes allowed "
            "(FLORENCE_MAX_IMAGE_BYTES)"
        )


def _failure(status: int) -> FlorenceError:
    """The error for a status that is neither 200 nor a redirect; its message does not disclose the status."""
    if status == 429 or status >= 500:
        return FetchFailed("image_url's host failed, or is busy")
    return NoPicture(NO_PICTURE)


def fetcher_of(settings: Settings) -> PictureFetcher:
    """A fetcher as the settings say; it refuses every URL where FLORENCE_IMAGE_HOSTS names no host.

    Raises SettingsError. Certificates are checked against `certifi`'s bundle, or SSL_CERT_FILE.
    """
    allowed = read_allow_list(settings.image_hosts, settings.image_networks)
    return PictureFetcher(
        allowed=allowed,
        max_bytes=settings.max_image_bytes,
        arrive_s=settings.body_timeout_s,
        max_fetches=settings.max_queue,
        max_fetches_of_key=int(settings.max_queue * settings.key_queue_share),
        tls=httpx.create_ssl_context() if allowed.rules else None,
    )
