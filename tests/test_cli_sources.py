"""Pictures in a directory are recognised by their bytes; other files are counted and named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import drawn, saved

from florence.cli.telling import list_pictures
from florence.errors import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures under strange names, and other files."""
    (tmp_path / "deep").mkdir()
    for name, format in (("a.JFIF", "JPEG"), ("b", "PNG"), ("deep/c.picture", "TIFF"), ("d.avif", "AVIF")):
        (tmp_path / name).write_bytes(saved(drawn(), format))
    for name in ("notes.txt", "e.jpg", "Makefile"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "._a.jpg").write_bytes(b"\0\x05\x16\x07 what macOS knows about a.jpg")
    return tmp_path


def test_pictures_are_told_by_their_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures are recognised with any suffix; a file with a picture's suffix but other bytes is asked about,
    so that it fails."""
    found = [str(Path(path).relative_to(folder)) for path in list_pictures([str(folder)])]
    assert found == ["a.JFIF", "b", "d.avif", "deep/c.picture", "e.jpg"]
    said = capsys.readouterr().err
    assert said == "florence: 3 files skipped, which are not pictures: 1 .jpg, 1 without a suffix, 1 .txt\n"


def test_a_file_that_is_named_is_asked_about_whatever_it_is(folder: Path) -> None:
    """A file named directly is always asked about, so that its failure is reported."""
    assert list_pictures([str(folder / "e.jpg")]) == [str(folder / "e.jpg")]


def test_a_directory_without_pictures_is_an_error(tmp_path: Path) -> None:
    """A directory without pictures is an error."""
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(RequestError, match="names no picture"):
        list_pictures([str(tmp_path)])


def test_the_reported_folder_is_found_whole(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A phone's HEIC and a browser's JFIF are found."""
    found = list_pictures([str(shared / "reports" / "inputs" / "folder")])
    assert [Path(path).name for path in found] == ["IMG_0001.HEIC", "one.jpg", "saved_by_browser.jfif"]
    assert capsys.readouterr().err == ""
