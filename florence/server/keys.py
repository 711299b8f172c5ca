"""API keys: which requests are allowed, and the name of the key that each was sent with.

Knows keys and names; knows nothing about HTTP and gRPC. Keys come from a setting or from a file, which is
read again when it changes. Only hashes are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from florence.checkpoint.files import version_of
from florence.errors import SettingsError, Unauthorized
from florence.server.log import logger

MIN_CHARS: Final = 32
CHECK_S: Final = 2.0
"""Seconds between two checks whether the file has changed."""
HELP: Final = "send `Authorization: Bearer KEY` with one of the service's API keys"

_LINE: Final = re.compile(rf"([A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}):([!-~]{{{MIN_CHARS},512}})")
CALLER: ContextVar[str] = ContextVar("caller", default="")


def caller() -> str:
    """The name of the key with which the current request was sent; empty where the service has no keys."""
    return CALLER.get()


def read_keys(lines: Iterable[str], source: str) -> dict[str, bytes]:
    """The SHA-256 of each key by its name, from lines `name:key`; empty lines, and lines that begin with #,
    are skipped.

    Raises SettingsError, which names the line by its number, never its key.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise SettingsError(
                f"{source}, line {number}: must be name:key, the key of at least {MIN_CHARS} visible "
                "characters (`openssl rand -hex 32` makes one)"
            )
        name, digest = found[1], _digest(found[2])
        if name in keys or any(hmac.compare_digest(digest, other) for other in keys.values()):
            raise SettingsError(f"{source}, line {number}: the name or the key of {name!r} is given twice")
        keys[name] = digest
    if not keys:
        raise SettingsError(f"{source} holds no key")
    return keys


class ApiKeys:
    """The keys of a service: the SHA-256 of each by its name. Thread-safe."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)

    def check(self, authorization: str | None) -> str:
        """The name of the key in an Authorization header. Raises Unauthorized where it has no key, or an
        unknown one.

        Takes the same time whichever key matches, and keeps the name for `caller`.
        """
        kind, _, token = (authorization or "").partition(" ")
        sent = _digest(token.strip() if kind.lower() == "bearer" else "")
        matches = [name for name, digest in self._current().items() if hmac.compare_digest(digest, sent)]
        if not matches:
            reason = "the API key is not known" if authorization else "an API key is needed"
            raise Unauthorized(f"{reason}: {HELP}")
        CALLER.set(matches[0])
        return matches[0]

    def _current(self) -> Mapping[str, bytes]:
        return self._keys


class FileKeys(ApiKeys):
    """The keys in a file, read again when it changes. An invalid file leaves the old keys in force, and a log
    line says why; at the start it raises SettingsError."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._version, self._looked = version_of(path), clock()
        super().__init__(_read_file(path))

    def _current(self) -> Mapping[str, bytes]:
        with self._lock:
            if self._clock() - self._looked >= CHECK_S:
                self._looked = self._clock()
                self._read_again()
            return self._keys

    def _read_again(self) -> None:
        version = version_of(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _read_file(self._path)
        except SettingsError as error:
            logger.error("the API keys are unchanged: %s", error)
        else:
            logger.info("API keys are read again: %s", ", ".join(sorted(self._keys)))


def keys_of(inline: str | None, path: Path | None) -> ApiKeys | None:
    """The keys of the settings FLORENCE_API_KEYS or FLORENCE_API_KEYS_FILE; None where neither is set. Raises
    SettingsError for both, and for invalid keys."""
    if inline and path:
        raise SettingsError("set FLORENCE_API_KEYS or FLORENCE_API_KEYS_FILE, not both")
    if path:
        return FileKeys(path)
    return ApiKeys(read_keys(re.split(r"[,\n]", inline), "FLORENCE_API_KEYS")) if inline else None


def _read_file(path: Path) -> dict[str, bytes]:
    try:
        return read_keys(path.read_text(encoding="utf-8").splitlines(), f"FLORENCE_API_KEYS_FILE ({path})")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"FLORENCE_API_KEYS_FILE can't be read: {error}") from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
