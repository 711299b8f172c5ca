"""`florence serve`: becomes `bentoml serve` of the installed service."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from florence.errors import FlorenceError

SERVICE: Final = "florence.server.entry:service"


def serve(arguments: argparse.Namespace) -> NoReturn:
    """Replaces this process by the server, so that signals reach it. Raises SettingsError, and FlorenceError
    where a port is in use."""
    from florence.settings import read_settings

    host, port = arguments.host, arguments.port
    if arguments.model:
        os.environ["FLORENCE_MODEL"] = arguments.model
    settings = read_settings()
    check_free(host, port, "--host", "--port")
    if settings.grpc_port:
        of_host = "FLORENCE_GRPC_HOST" if settings.grpc_host else "--host"
        check_free(settings.grpc_host or host, settings.grpc_port, of_host, "FLORENCE_GRPC_PORT")
    os.environ["BENTOML_HOME"] = str(home_of(port))
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execv(sys.executable, command)


def check_free(host: str, port: int, of_host: str, of_port: str) -> None:
    """Raises FlorenceError where the port can't be listened on, for instance as another program does; the
    server would fail later, with a traceback.

    `of_host`, `of_port`: what sets them, for the message.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FlorenceError(f"{of_host}: there is no address {host!r} ({error})") from error
    failed = [failure for each in found if (failure := _failure(each[0], each[1], each[4]))]
    if any(failure.errno == errno.EADDRINUSE for failure in failed):
        raise FlorenceError(f"port {port} of {host} is in use by another program; choose one by {of_port}")
    if len(failed) == len(found):  # of a name with several addresses, the system may lack some
        told = f"can't listen on port {port} of {host}: {failed[0].strerror}"
        settings = " and ".join(dict.fromkeys((of_host, of_port)))
        raise FlorenceError(f"{told}; choose others by {settings}") from failed[0]


def _failure(family: int, kind: int, address: Any) -> OSError | None:
    """Why a socket of this kind can't be bound to the address; None: it can."""
    try:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except OSError as error:
        return error
    return None


def home_of(port: int) -> Path:
    """BentoML's home directory for a service on a port. Services must not share one: each clears the metrics
    in it when it starts.

    It is BENTOML_HOME where that is set; else in the user's cache or, where that can't be written, in the
    folder for temporary files. Raises FlorenceError where it can't be written.
    """
    if named := os.environ.get("BENTOML_HOME"):
        return _named_home(named)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home = cache / "florence" / f"bentoml-{port}"
        if home.is_absolute():  # as the XDG Base Directory Specification says
            home.mkdir(parents=True, exist_ok=True)
            if os.access(home, os.W_OK | os.X_OK):
                return home
    except (OSError, RuntimeError):  # the root is read-only, or the user has no home
        pass
    try:
        return _temporary_home(port)
    except OSError as error:
        raise FlorenceError(f"there is no writable folder ({error}); set BENTOML_HOME to one") from error


def _named_home(named: str) -> Path:
    home = Path(os.path.expandvars(os.path.expanduser(named)))  # noqa: PTH111 - as BentoML does
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK) or not home.is_dir():
        raise FlorenceError(f"BENTOML_HOME: {home} is not a writable folder; name another one")
    return home


def _temporary_home(port: int) -> Path:
    """The same folder at each start. Other users may write beside it, so it is checked that it is this
    user's own and not a link. Raises OSError, and FlorenceError where it is another's."""
    home = Path(tempfile.gettempdir(), f"florence-bentoml-{os.geteuid()}-{port}")
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    status = home.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & others:
        raise FlorenceError(
            f"{home} is a link, or other users may write it; remove it, or set BENTOML_HOME to another folder"
        )
    return home
