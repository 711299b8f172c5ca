"""URLs of pictures, read strictly: what two parsers could read differently is refused (O. Tsai, "A New Era of
SSRF", Black Hat 2017). The host that is checked is the host that is asked.

Knows the syntax of URLs; nothing about which hosts are allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import urljoin

from florence.errors import UrlError

MAX_URL_CHARS: Final = 8192  # signed URLs have about 2,000
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CHARACTERS: Final = re.compile(
    r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*"
)  # RFC 3986, all that a URL may have
_URL: Final = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"(\[[^\[\]@]*\]|[^:\[\]@]*)(?::([0-9]{1,5}))?")
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as a last label: to some parsers an IPv4 address


@dataclass(frozen=True, slots=True)
class PictureUrl:
    """A URL's parts. `host`: a name in lower case without a trailing dot, or an address in its shortest form.
    `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them; a default port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.is_default_port else f"{host}:{self.port}"

    @property
    def is_default_port(self) -> bool:
        return self.port == _DEFAULT_PORTS[self.scheme]

    def joined(self, location: str) -> PictureUrl:
        """The URL that a redirect from this one leads to. Raises UrlError."""
        return parse_url(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))


def parse_url(text: str) -> PictureUrl:
    """The URL's parts. Raises UrlError for anything but an http or https URL of a host, without user and
    password."""
    if len(text) > MAX_URL_CHARS:
        raise UrlError(f"image_url has {len(text)} characters; up to {MAX_URL_CHARS} are allowed")
    if not _CHARACTERS.fullmatch(text):
        raise UrlError(
            "image_url holds a character that no URL has: write it percent-encoded, and a host in ASCII "
            "(xn--...)"
        )
    parts = _URL.fullmatch(text)
    if parts is None:
        raise UrlError("image_url must be an http or https URL, such as https://images.example/street.jpg")
    scheme, authority, target = parts[1].lower(), parts[2], parts[3]
    if "@" in authority:
        raise UrlError("image_url contains a user or a password; such URLs are not fetched")
    host, port = parse_authority(authority) or ("", None)
    if not host:
        raise UrlError(
            "image_url's host must be a name or an address in its usual form, with or without a port"
        )
    return PictureUrl(
        scheme,
        host,
        _DEFAULT_PORTS[scheme] if port is None else port,
        target if target.startswith("/") else f"/{target}",
    )


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """Host and port of `host`, `host:port` or `[IPv6]:port`; None where it is none of these."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None:
        return None
    host, port = _host(parts[1].lower()), None if parts[2] is None else int(parts[2])
    return None if host is None or (port is not None and not 1 <= port <= 65_535) else (host, port)


def _host(text: str) -> str | None:
    try:
        if text.startswith("["):
            address = IPv6Address(text[1:-1])
            return None if address.scope_id else str(address)
        name = text.removesuffix(".")
        labels = name.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(name))  # four decimal numbers; no octal or hexadecimal
    except ValueError:
        return None
    return name if len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) else None
