"""`florence serve` before it becomes the server: its addresses, and its working folder."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import free_port

from florence.cli.serving import home_of
from florence.errors import FlorenceError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_named_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset BENTOML_HOME."""
    monkeypatch.delenv("BENTOML_HOME", raising=False)


@pytest.mark.parametrize("host", ["192.0.2.1", "x" * 300, ".."])
@pytest.mark.parametrize("setting", ["--host", "FLORENCE_GRPC_HOST"])
def test_serve_says_that_an_address_is_not_here(
    florence: Run, monkeypatch: pytest.MonkeyPatch, host: str, setting: str
) -> None:
    """A host of another machine or a malformed name is one line that names the setting; no DNS is asked."""
    if setting == "FLORENCE_GRPC_HOST":
        monkeypatch.setenv(setting, host)
    monkeypatch.setenv("FLORENCE_GRPC_PORT", str(free_port()))
    named = ["--host", host] if setting == "--host" else []
    status, out, err = florence("serve", "--port", str(free_port()), *named)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert setting in err


@pytest.mark.parametrize("named", ["/proc/nowhere", "/dev/null"])
def test_a_named_home_that_cannot_be_written_is_refused(
    florence: Run, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A BENTOML_HOME that can't be written is one line, without BentoML's traceback."""
    monkeypatch.setenv("BENTOML_HOME", named)
    monkeypatch.setenv("FLORENCE_GRPC_PORT", "0")
    status, out, err = florence("serve", "--port", str(free_port()))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"BENTOML_HOME: {named}" in err


def test_a_named_home_is_taken_and_an_empty_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BENTOML_HOME is read as BentoML reads it, with ~ expanded; an empty one counts as not set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BENTOML_HOME", "~/mine")
    assert home_of(8000) == tmp_path / "mine"
    monkeypatch.setenv("BENTOML_HOME", "")
    assert home_of(8000).name == "bentoml-8000"


@pytest.mark.parametrize(("port", "setting"), [("--port", "--port"), ("grpc", "FLORENCE_GRPC_PORT")])
def test_serve_says_that_a_port_is_taken(
    florence: Run, monkeypatch: pytest.MonkeyPatch, port: str, setting: str
) -> None:
    """A port in use is one line, before the model is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = str(other.getsockname()[1]), str(free_port())
        monkeypatch.setenv("FLORENCE_GRPC_PORT", taken if port == "grpc" else "0")
        status, out, err = florence("serve", "--port", free if port == "grpc" else taken)
    assert (status, out) == (1, "")
    assert err == (
        f"florence: port {taken} of 127.0.0.1 is in use by another program; choose one by {setting}\n"
    )


def test_services_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each port has its own folder in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home_of(8000) == home_of(8000) != home_of(8001)
    assert home_of(8000).is_relative_to(tmp_path)


@pytest.mark.parametrize("cache", ["/proc/nowhere", "not/absolute", "read-only"])
def test_without_a_cache_a_service_has_one_temporary_folder_a_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Without a cache each port has one temporary folder, the same at each start, for this user only."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir("/proc")  # where creating a relative path would fail
    if cache == "read-only":  # as if it had been made before the root was read-only
        monkeypatch.setattr(os, "access", lambda *_: False)
        cache = str(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    first = home_of(8000)
    assert home_of(8000) == first != home_of(8001)
    assert first.parent == tmp_path
    assert first.stat().st_mode & 0o777 == 0o700


def is_link(home: Path) -> None:
    """Replace the folder by a symbolic link."""
    home.rename(home.with_name("elsewhere"))
    home.symlink_to(home.with_name("elsewhere"))


def is_file(home: Path) -> None:
    """Replace the folder by a file."""
    home.rmdir()
    home.write_text("")


def is_shared(home: Path) -> None:
    """Let the group write into the folder."""
    home.chmod(0o770)


@pytest.mark.parametrize("change", [is_link, is_file, is_shared, None])
def test_a_temporary_folder_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None] | None
) -> None:
    """A temporary folder that another user may have made is refused with a remedy. `None`: it belongs to
    another user."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    home = home_of(8000)
    if change is None:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        home.rename(home.with_name(f"florence-bentoml-{os.geteuid()}-8000"))
    else:
        change(home)
    with pytest.raises(FlorenceError, match=r"florence-bentoml-\d+-8000.*BENTOML_HOME"):
        home_of(8000)


def test_without_any_folder_serve_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache and without a temporary directory the error names BENTOML_HOME."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(FlorenceError, match="BENTOML_HOME"):
        home_of(8000)
