"""Programs that pip does not install, for the tests with the marker `system`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn

import pytest

NEEDED: Final = bool(os.environ.pop("FLORENCE_CI", ""))
"""True if an absent program is an error. It is removed from the environment, where commands would refuse
it as an unknown setting."""


def program(name: str, package: str, variable: str) -> str:
    """The path of a program, from the variable or from the system; without it the test is skipped
    or fails."""
    found = os.environ.get(variable) or shutil.which(name) or shutil.which(name, path="/usr/sbin")
    return found or absent(f"no {name} is installed (Debian: {package})")


def absent(reason: str) -> NoReturn:
    """Skip the test because something is absent, or fail it under FLORENCE_CI."""
    pytest.fail(reason) if NEEDED else pytest.skip(reason)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for `localhost` and 127.0.0.1 and its key into the folder."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [program("openssl", "openssl", "OPENSSL_PROGRAM"), "req", "-x509", "-newkey", "rsa:2048"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-nodes", "-days", "2", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key
