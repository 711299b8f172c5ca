"""`florence serve`: becomes `bentoml serve` of the installed service."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
import tempfile
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
    in it when it starts."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home = cache / "florence" / f"bentoml-{port}"
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the root is read-only, or the user has no home
        return Path(tempfile.mkdtemp(prefix="florence-bentoml-"))
    return home
