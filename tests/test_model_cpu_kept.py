"""Compiled kernels in a cache for later processes: used if they can be trusted, otherwise compiled again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from florence.model.kernels.cpu import kept, objects
from florence.model.kernels.cpu.kept import cache_folders, keep, read_kept
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.cpu.products import PanelWeight, Products

NAME = "some-name.o"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A user's cache and a folder for temporary files, both empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    cache, temporary = cache_folders()
    return cache, temporary


def test_what_is_kept_is_read_back_and_belongs_to_the_user_alone(folders: tuple[Path, Path]) -> None:
    """A kept file is read back from the user's cache; no other user may read or write it, and no other
    file is left."""
    assert read_kept(NAME) is None
    keep(NAME, b"content")
    assert read_kept(NAME) == b"content"
    assert [path.name for path in folders[0].iterdir()] == [NAME]
    assert (folders[0] / NAME).stat().st_mode & 0o777 == 0o600
    assert folders[0].stat().st_mode & 0o777 == 0o700


def spoil(path: Path) -> None:
    """Change the file's last byte."""
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def rename(path: Path) -> None:
    """Replace the file by another kept one."""
    keep("another.o", b"content of another")
    path.with_name("another.o").replace(path)


def share(path: Path) -> None:
    """Let the group read and write the file."""
    path.chmod(0o660)


def link(path: Path) -> None:
    """Move the file and leave a link in its place."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("change", [spoil, rename, share, link, Path.unlink])
def test_what_cannot_be_trusted_is_not_used(
    folders: tuple[Path, Path], change: Callable[[Path], Any]
) -> None:
    """A changed file, another file's content, a file that others may write, and a link count as absent."""
    keep(NAME, b"content")
    change(folders[0] / NAME)
    assert read_kept(NAME) is None
    keep(NAME, b"content again")
    assert read_kept(NAME) == b"content again"


def test_a_cache_that_cannot_be_written_is_replaced_by_temporary_files(folders: tuple[Path, Path]) -> None:
    """Where the cache can't be written, as in a read-only container, temporary files are used; where those
    can't be written either, nothing is kept."""
    cache, temporary = folders
    cache.parents[1].write_text("a file where the folder would be")
    keep(NAME, b"content")
    assert (temporary / NAME).is_file()
    assert read_kept(NAME) == b"content"
    (temporary / NAME).unlink()
    temporary.rmdir()
    temporary.write_text("a file here too")
    keep(NAME, b"content")
    assert read_kept(NAME) is None


def test_a_relative_cache_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative XDG_CACHE_HOME is ignored, as the XDG specification requires."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert len(list(cache_folders())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not available(torch.float32), reason="there are no kernels for this processor")
def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept kernel gives the same numbers without compilation; other lanes or another Python make a new
    one."""
    compiled: list[bytes] = []

    def compile_object(fields: Sequence[str], work: objects.Work) -> bytes:
        compiled.append(make_object(fields, work))
        return compiled[-1]

    make_object = objects.compile_object
    monkeypatch.setattr(objects, "compile_object", compile_object)
    weight, states = torch.randn(40, 32), torch.randn(3, 32)
    first, second = (
        PanelWeight(Products(torch.float32, 1, lanes=8), weight, None).product(states) for _ in range(2)
    )
    assert len(compiled) == 1
    assert torch.equal(first, second)
    Products(torch.float32, 1, lanes=16)
    assert len(compiled) == 2
    monkeypatch.setattr(objects.platform, "python_version", lambda: "3.99")
    Products(torch.float32, 1, lanes=8)
    assert len(compiled) == 3
