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
from typing import Final, NoReturn

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
    check_free(host, port, "--port")
    if settings.grpc_port:
        check_free(settings.grpc_host or host, settings.grpc_port, "FLORENCE_GRPC_PORT")
    os.environ.setdefault("BENTOML_HOME", str(home_of(port)))
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execv(sys.executable, command)


def check_free(host: str, port: int, setting: str) -> None:
    """Raises FlorenceError where another program listens on the port; the server would fail later, with a
    traceback.

    `setting`: what sets the port, for the message.
    """
    for family, kind, _, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise FlorenceError(
                        f"port {port} of {host} is in use by another program; choose one by {setting}"
                    ) from error


def home_of(port: int) -> Path:
    """BentoML's home directory for a service on a port. Services must not share one: each clears the metrics
    in it when it starts.

    It is in the user's cache or, where that can't be written, in the folder for temporary files. Raises
    FlorenceError where neither can be had.
    """
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
        raise FlorenceError(
            f"there is no folder to work in ({error}); name one that can be written by BENTOML_HOME"
        ) from error


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
            f"{home} is a link, or other users may write it; remove it, or name another one by BENTOML_HOME"
        )
    return home
