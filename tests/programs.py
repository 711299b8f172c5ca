"""Programs that pip does not install, for the tests with the marker `system`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn

import pytest

NEEDED: Final = bool(os.environ.pop("FLORENCE_CI", ""))
"""Whether a program that is not here is an error. Taken out of the environment, where commands would refuse
it as an unknown setting."""


def program(name: str, package: str, variable: str) -> str:
    """Where it is: as the variable says, or where the system has it."""
    found = os.environ.get(variable) or shutil.which(name) or shutil.which(name, path="/usr/sbin")
    return found or absent(f"no {name} is installed (Debian: {package})")


def absent(reason: str) -> NoReturn:
    """What a test needs is not here: it is skipped, but for FLORENCE_CI, with which that is an error."""
    pytest.fail(reason) if NEEDED else pytest.skip(reason)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for `localhost` and 127.0.0.1, and its key, as files in the folder."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [program("openssl", "openssl", "OPENSSL_PROGRAM"), "req", "-x509", "-newkey", "rsa:2048"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-nodes", "-days", "2", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key
