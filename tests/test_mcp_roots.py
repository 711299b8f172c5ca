"""How an agent names a picture: paths and resources in the allowed folders, base64, contents."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from agents import BASE64, FakeAsk, call, told, with_client
from mcp import Client, MCPError
from v2 import picture

from florence.errors import ImageError, ImageTooLarge, SettingsError
from florence.images.limits import DEFAULT_LIMITS
from florence.mcp.roots import MAX_LISTED, Roots


@pytest.fixture
def ask() -> FakeAsk:
    """A fake that answers and records the questions."""
    return FakeAsk()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An allowed folder, beside a picture that is not allowed."""
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "pictures"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "ü.png").write_bytes(picture())
    (folder / "one.PNG").write_bytes(picture((4, 4)))
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_picture_comes_in_each_way(ask: FakeAsk, folder: Path) -> None:
    """A picture may be a path, relative or not; base64 with white space or as a data URI; a listed
    resource; a file's URI; or the contents of another server's resource."""
    file = folder / "a b" / "ü.png"
    ways: list[dict[str, Any]] = [
        {"path": str(file)},
        {"path": "a b/ü.png"},
        {"base64": BASE64[:20] + "\n " + BASE64[20:]},
        {"base64": f"data:image/png;base64,{BASE64}"},
        {"resource": f"data:image/png;base64,{BASE64}"},
        {"resource": "picture:///1/a%20b/%C3%BC.png"},
        {"resource": file.as_uri()},
        {"resource": {"uri": "other://7", "mimeType": "image/png", "blob": BASE64}},
    ]
    for way in ways:
        result = call(ask, "describe", folder, **way)
        assert not result.is_error, told(result)
    assert {data for data, _ in ask.asked} == {picture()}
    assert len(ask.asked) == len(ways)


def test_no_path_leads_out_of_the_folders(ask: FakeAsk, folder: Path) -> None:
    """A path, a link or a URI that leads out of the folders is refused, in the words for a missing file."""
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.png")
    secret = folder.parent / "secret.png"
    ways = [
        {"path": str(secret)},
        {"path": "../secret.png"},
        {"path": "a b/../../secret.png"},
        {"path": "link.png"},
        {"path": "up/secret.png"},
        {"path": "pipe.png"},
        {"path": "."},
        {"path": ""},
        {"path": "nothing.png"},
        {"path": "a\0.png"},
        {"path": "x" * 5000},
        {"path": "/etc/passwd"},
        {"path": f"{folder}-beside/x.png"},
        {"resource": secret.as_uri()},
        {"resource": "picture:///1/../secret.png"},
        {"resource": "picture:///1/%2e%2e/secret.png"},
        {"resource": f"picture:///1/{secret}"},
        {"resource": "picture:///2/one.PNG"},
        {"resource": "picture:///0/one.PNG"},
        {"resource": "picture:///1/"},
        {"resource": "https://example.org/x.png"},
        {"resource": "http://[x"},
        {"resource": "picture:///1/%ff"},
    ]
    for way in ways:
        result = call(ask, "describe", folder, **way)
        assert result.is_error, way
        assert len(told(result)) < 300
    assert ask.asked == []
    reasons = {
        told(call(ask, "describe", folder, path=path)).replace(path, "")
        for path in ("../secret.png", "../secret.pngx")  # short ones are quoted as they are
    }
    assert len(reasons) == 1


def test_a_path_needs_a_folder_and_stdio(ask: FakeAsk, folder: Path) -> None:
    """Paths are read only over stdio and with a folder; over HTTP only listed pictures are, and no tool
    has a path."""
    assert "--root FOLDER" in told(call(ask, "describe", path=str(folder / "one.PNG")))
    for way in ({"path": "one.PNG"}, {"resource": (folder / "one.PNG").as_uri()}):
        assert "over stdio" in told(call(ask, "describe", folder, local=False, **way))
    assert not call(ask, "describe", folder, local=False, resource="picture:///1/one.PNG").is_error
    assert "started with --url" in told(call(ask, "describe", url="https://pictures.example/a.png"))
    tools = with_client(ask, lambda client: client.list_tools(), folder, local=False).tools
    assert all("path" not in tool.input_schema["properties"] for tool in tools)
    with pytest.raises(SettingsError, match="is not a folder"):
        Roots([folder / "notes.txt"], local=True)


def test_pictures_are_listed_and_read(ask: FakeAsk, folder: Path, tmp_path: Path) -> None:
    """Each listed resource can be read and used as a tool's picture; other files are not listed."""

    async def work(client: Client) -> list[tuple[str, bytes]]:
        listed = (await client.list_resources()).resources
        read = [await client.read_resource(each.uri) for each in listed]
        with pytest.raises(MCPError, match="not one of this server's"):
            await client.read_resource("picture:///7/x.png")
        return [
            (each.name, base64.b64decode(one.contents[0].blob))
            for each, one in zip(listed, read, strict=True)
        ]

    (folder / "up").symlink_to(tmp_path)
    assert with_client(ask, work, folder) == [("one.PNG", picture((4, 4))), ("ü.png", picture())]
    assert with_client(ask, lambda client: client.list_resources()).resources == []
    for number in range(MAX_LISTED):
        (folder / f"{number}.png").touch()
    assert len(with_client(ask, lambda client: client.list_resources(), folder).resources) == MAX_LISTED


def test_an_unreadable_file_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be opened is an ImageError with the system's reason."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        Roots([folder], local=True).read_path("one.PNG")


def test_a_file_above_the_limit_is_an_error(folder: Path) -> None:
    """A file with more bytes than a picture may have is refused."""
    os.truncate(folder / "one.PNG", DEFAULT_LIMITS.max_bytes + 1)
    with pytest.raises(ImageTooLarge, match=str(DEFAULT_LIMITS.max_bytes)):
        Roots([folder], local=True).read_path("one.PNG")
