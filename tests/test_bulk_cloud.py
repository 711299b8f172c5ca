"""Sources in object storage, with moto's S3 server on this machine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from bulk_runs import echo
from pictures import drawn, saved

from florence.answers.files import read_answers
from florence.bulk.items import Pages, item_named
from florence.bulk.question import PictureQuestion
from florence.bulk.sources import Sources
from florence.errors import ImageError, RequestError
from florence.types.tasks import TASKS

pytestmark = pytest.mark.slow
PNG = saved(drawn(48, 32), "PNG")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket with pictures in folders, a shard, a manifest and a list."""
    fsspec = pytest.importorskip("fsspec")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ):  # fmt: skip
            patch.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.mkdir("pictures")
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as archive:
            for name in ("0001.png", "0001.txt"):
                member = tarfile.TarInfo(name)
                member.size = len(PNG)
                archive.addfile(member, io.BytesIO(PNG if name.endswith("png") else bytes(len(PNG))))
        objects = {
            "in/a.png": PNG,
            "in/deep/b.jpg": PNG,
            "in/d.pdf": b"%PDF-1.4",
            "in/list.txt": b"# two\na.png\ns3://pictures/in/deep/b.jpg\n",
            "in/m.csv": b"picture,id\ndeep/b.jpg,7\n",
            "s-0.tar": shard.getvalue(),
        }
        for name, content in objects.items():
            files.pipe_file(f"pictures/{name}", content)
        yield "s3://pictures"
        server.stop()


def names(*sources: str, **options: bool | Pages) -> list[str]:
    """The names of the pictures in these sources."""
    return [item.picture for item in Sources(sources, **options).items()]  # type: ignore[arg-type]


def test_folders_globs_and_objects_are_named(bucket: str) -> None:
    """Pictures are named by URLs, which open them again; other objects are counted."""
    a, b = f"{bucket}/in/a.png", f"{bucket}/in/deep/b.jpg"
    sources = Sources([f"{bucket}/in"])
    found = list(sources.items())
    assert [item.picture for item in found] == [a, b]
    assert [item.read() for item in found] == [item_named(item.picture).read() for item in found] == [PNG] * 2
    assert set(sources.skipped.lines()) == {
        "1 skipped: PDFs; --pages asks about their pages",
        "2 files skipped, which are not pictures: 1 .txt, 1 .csv",
    }
    assert names(f"{bucket}/in", recursive=False) == [a]
    assert names(f"{bucket}/in/**/*.jpg") == names(f"{bucket}/in/deep/b.jpg") == [b]
    assert names(f"{bucket}/in", pages=Pages()) == [
        a,
        f"{bucket}/in/d.pdf",
        b,
    ]  # it fails


def test_lists_manifests_and_shards_lie_there_too(bucket: str) -> None:
    """Lists, manifests and shards can be objects, and relative paths in them start at their own folder."""
    listed = Sources([f"{bucket}/in/list.txt"])
    assert [item.read() for item in listed.items()] == [PNG, PNG]
    (item,) = Sources([f"{bucket}/in/m.csv"], questions=(PictureQuestion(TASKS["<CAPTION>"]),)).items()
    assert (item.id, item.read()) == ("7", PNG)
    (member,) = Sources([f"{bucket}/s-{{0..0}}.tar"]).items()
    assert member.picture == f"tar://0001.png::{bucket}/s-0.tar"
    assert member.read() == item_named(member.picture).read() == PNG


def test_what_is_not_there_is_one_error(bucket: str) -> None:
    """A missing bucket or object is one error."""
    for url in ("s3://nosuchbucket/in", f"{bucket}/gone.png", f"{bucket}/gone/*"):
        with pytest.raises(RequestError, match="names no picture"):
            names(url)
    with pytest.raises(ImageError, match="can't be read"):
        item_named(f"{bucket}/gone.png").read()


def test_bulk_asks_about_objects(
    bucket: str,
    florence: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`florence bulk` asks about objects, names their URLs in the answers, and finds them in a second run."""
    monkeypatch.setattr("florence.cli.bulk.open_asker", lambda *_: nullcontext(echo))
    command = ("bulk", f"{bucket}/in", "--task", "caption", "--out", tmp_path / "r.jsonl")
    status, _, err = florence(*command)
    assert (status, err.splitlines()[-1]) == (0, "florence: 2 answered")
    assert {each.picture for each in read_answers(tmp_path / "r.jsonl")} == {
        f"{bucket}/in/a.png", f"{bucket}/in/deep/b.jpg",
    }  # fmt: skip
    assert "0 answered, 2 were there before" in florence(*command)[2]
