"""Pictures named by sources: directories, globs, lists, manifests, archives and documents; and skipped
files."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pdfs import pdf
from pictures import drawn, saved

from florence.bulk.archives import expand_braces
from florence.bulk.items import Pages, item_named
from florence.bulk.question import PictureQuestion
from florence.bulk.sources import Sources
from florence.errors import ImageError, ImageTooLarge, RequestError
from florence.images.decode import open_image
from florence.images.limits import DEFAULT_LIMITS
from florence.images.seen import View
from florence.types.tasks import TASKS

PNG = saved(drawn(48, 32), "PNG")
OPEN = PictureQuestion(TASKS.resolve("open_vocabulary_detection"))


def names(*sources: object, **options: Any) -> list[str]:
    """The names of the pictures in these sources."""
    return [item.picture for item in Sources([str(each) for each in sources], **options).items()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with pictures in `in` and `in/deep`."""
    for name in ("in/a.png", "in/b.png", "in/deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """Write a tar archive with these members."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_directories_are_looked_into_as_deep_as_is_asked(folder: Path) -> None:
    """Subdirectories are searched unless `recursive` is off."""
    assert names("in") == ["in/a.png", "in/b.png", "in/deep/c.png"]
    assert names("in", recursive=False) == ["in/a.png", "in/b.png"]


def test_a_list_has_comments(folder: Path) -> None:
    """A line of a list that begins with # is a comment, a name may contain #, and a byte order mark is
    ignored."""
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf# comment\nin/a.png\n\n  in/b#1.png \n#in/c.png\n")
    assert names("list.txt") == ["in/a.png", "in/b#1.png"]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_manifest_says_what_is_asked(folder: Path, name: str) -> None:
    """A manifest's rows mean the same in every format; neighbouring rows of one picture are one item, and ids
    are kept."""
    rows: list[dict[str, Any]] = [
        {"picture": "in/a.png", "task": "caption", "text": None, "region": None, "id": "7"},
        {
            "picture": "in/a.png",
            "task": "<OPEN_VOCABULARY_DETECTION>",
            "text": "a, b",
            "region": None,
            "id": "7",
        },
        {"picture": "in/b.png", "task": "region_to_ocr", "text": None, "region": "1,2,3,4", "id": None},
    ]
    if name == "m.csv":
        text = "picture,task,text,region,id\r\nin/a.png,caption,,,7\r\n"
        text += 'in/a.png,<OPEN_VOCABULARY_DETECTION>,"a, b",,7\r\nin/b.png,region_to_ocr,,"1,2,3,4",\r\n'
        (folder / name).write_text(text, encoding="utf-8", newline="")
    elif name == "m.jsonl":
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    sources = Sources([name])
    assert sources.have_questions
    first, second = sources.items()
    assert (first.picture, first.id, first.key) == ("in/a.png", "7", "7")
    asked = [(each.task.token, each.text, each.region) for each in first.questions]
    assert asked == [("<CAPTION>", None, None), ("<OPEN_VOCABULARY_DETECTION>", "a, b", None)]
    assert (second.id, second.questions[0].region) == (None, "1,2,3,4")
    assert first.read() == PNG


def test_a_manifests_text_goes_to_the_runs_task(folder: Path) -> None:
    """The text of a row without a task goes to the run's task, and unknown columns are reported."""
    (folder / "m.csv").write_text("picture,text,split\nin/a.png,a car,train\nin/b.png,,test\n")
    sources = Sources(["m.csv"], questions=(PictureQuestion(OPEN.task, "a tree"),))
    assert [item.questions[0].text for item in sources.items()] == ["a car", "a tree"]
    assert list(sources.skipped.lines()) == ["m.csv has columns without a meaning here: split"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", "picture,task\n,caption\n", "m.csv, row 1: it has no picture"),
        ("m.csv", "picture\nin/a.png\n", "m.csv, row 1: it has no task, and the command names none"),
        ("m.csv", "picture,task\nin/a.png,captoin\n", "row 1: unknown task 'captoin'"),
        ("m.csv", "picture,task,text\nin/a.png,caption,x\n", "row 1: .*takes no text"),
        ("m.csv", 'picture,task\n"in/a.png,caption\n', "m.csv is not CSV"),
        ("m.csv", "", "m.csv has no rows"),
        ("m.jsonl", '{"picture": "in/a.png", "task": "caption"}\n[1]\n', "m.jsonl is not a JSON object"),
        ("m.jsonl", "{", "m.jsonl is not JSON"),
        ("m.jsonl", "[" * 100_000, "m.jsonl is not JSON"),
        ("m.jsonl", '{"picture": 7, "task": "caption"}\n', "picture must be a text, got 7"),
        ("m.jsonl", '{"picture": "a", "task": "region_to_ocr", "region": [1, 2]}\n', "four numbers"),
        ("m.parquet", "no parquet", "m.parquet is not a Parquet file"),
        ("t.tar", "no tar, but long enough for a header" * 30, "t.tar is not a tar archive"),
        ("l.txt", "", "names no picture"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_the_row(
    folder: Path, name: str, content: str, words: str
) -> None:
    """A wrong file is one error that names the row."""
    (folder / name).write_text(content)
    with pytest.raises(RequestError, match=words):
        names(name)


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz")])
def test_an_archive_holds_pictures(folder: Path, name: str, mode: str) -> None:
    """Each picture in an archive of WebDataset samples is an item, other members are counted, and the name
    opens the picture again."""
    members = {
        "0001.png": PNG,
        "0001.txt": b"a caption",
        "0001.json": b"{}",
        "d/0002.jpg": PNG,
        "0003.jpg": b"x",
    }
    tar(folder / name, members, mode)
    sources = Sources([name])
    found = list(sources.items())
    assert [item.picture for item in found] == [f"tar://0001.png::{name}", f"tar://d/0002.jpg::{name}"]
    assert [item.read() for item in found] == [PNG, PNG]
    assert list(sources.skipped.lines()) == [
        "3 files skipped, which are not pictures: 1 .txt, 1 .json, 1 .jpg"
    ]
    assert not sources.countable
    assert item_named(found[1].picture).read() == PNG
    assert item_named(found[1].picture, folder).read() == PNG


def test_what_is_too_large_in_an_archive_is_not_read(folder: Path) -> None:
    """Large members of an archive are not read: a picture over the limit fails by its header's size.

    The members after them are found, with the number of bytes that they hold.
    """
    large = 8 * 2**20
    tar(folder / "s.tar", {"0.png": PNG + bytes(large), "1.bin": bytes(large), "2.png": PNG})
    tracemalloc.start()
    refused, taken = Sources(["s.tar"], max_bytes=len(PNG)).items()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large / 4
    with pytest.raises(ImageTooLarge, match=f"more than the {len(PNG)} bytes allowed"):
        refused.read()
    assert (refused.held, taken.held, taken.read()) == (0, len(PNG), PNG)


def test_what_is_too_large_elsewhere_is_refused(folder: Path) -> None:
    """A file or object over the limit is refused, whether it is named directly or in a manifest."""
    pytest.importorskip("fsspec").filesystem("memory").pipe_file("/large.png", PNG)
    (folder / "m.csv").write_text("picture\nmemory://large.png\n")
    asked = (PictureQuestion(TASKS["<CAPTION>"]),)
    for name in ("memory://large.png", "m.csv"):
        (item,) = Sources([name], questions=asked, max_bytes=len(PNG)).items()
        assert item.read() == PNG
        (item,) = Sources([name], questions=asked, max_bytes=len(PNG) - 1).items()
        with pytest.raises(ImageTooLarge):
            item.read()
    with pytest.raises(ImageTooLarge):
        item_named("in/a.png").read(len(PNG) - 1)


@pytest.mark.parametrize("name", ["{0..1000000}.tar", "{000..999}/{0000..9999}.tar", "{0..99999999999}.tar"])
def test_braces_stand_for_a_number_of_names_that_can_be_held(name: str) -> None:
    """More are refused at once, before any name is made."""
    with pytest.raises(RequestError, match="more than 1000000 names"):
        expand_braces(name)
    assert len(expand_braces("{1..2}/{01..30}.tar")) == 60


def test_shards_are_named_by_braces_and_globs(folder: Path) -> None:
    """Braces and globs name shards."""
    for number in range(3):
        tar(folder / f"s-{number:03}.tar", {f"{number}.png": PNG})
    wanted = [f"tar://{number}.png::s-{number:03}.tar" for number in range(3)]
    for pattern in ("s-{000..002}.tar", "s-*.tar", "s-00?.*", "s-00[0-2].tar"):
        assert names(pattern) == wanted
        assert not Sources([pattern]).countable
    assert not Sources(["s3://bucket/*"]).countable


@pytest.mark.parametrize("kept", [300, 600, 1024 + 300])
def test_an_archive_that_is_cut_is_no_whole_one(folder: Path, kept: int) -> None:
    """An archive cut in its first header, in a picture or in a later header is an error."""
    name = tar(folder / "s.tar", {"0.png": PNG[:500], "1.png": PNG})
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    with pytest.raises(RequestError, match="is not a tar archive, or is cut short"):
        names(str(name))


def test_pages_of_documents_are_items(folder: Path) -> None:
    """Pages of PDFs and TIFF files are items, pictures stay whole, and a name opens the page again."""
    pages = [drawn(24, 16, frame=index) for index in range(3)]
    (folder / "in" / "d.pdf").write_bytes(pdf())
    (folder / "in" / "e.tiff").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    every = [f"in/d.pdf#page={page}" for page in (1, 2, 3)] + [f"in/e.tiff#page={page}" for page in (1, 2, 3)]
    found = names("in", pages=Pages.parse("all"), recursive=False)
    assert found == ["in/a.png", "in/b.png", *every]
    assert names("in/d.pdf", pages=Pages.parse("2-")) == every[1:3]
    assert names("in/e.tiff", pages=Pages.parse("2")) == [every[4]]
    item = item_named(every[4])
    assert (item.page, item.source) == (2, "in/e.tiff")
    assert open_image(item.read(), view=View(page=item.page)).tobytes() == pages[1].tobytes()


def test_a_pdf_in_a_directory_waits_for_pages(folder: Path) -> None:
    """A PDF in a directory is skipped with a hint at `--pages`, and a document without the wanted pages
    is counted.

    A PDF that can't be read is asked about, so that its failure is reported.
    """
    (folder / "in" / "d.pdf").write_bytes(pdf())
    sources = Sources(["in"], recursive=False)
    assert [item.picture for item in sources.items()] == ["in/a.png", "in/b.png"]
    assert list(sources.skipped.lines()) == ["1 skipped: PDFs; --pages asks about their pages"]
    sources = Sources(["in"], pages=Pages.parse("9"))
    list(sources.items())
    assert list(sources.skipped.lines()) == ["1 skipped: documents without the pages asked for"]
    (folder / "in" / "d.pdf").write_bytes(pdf(encrypted=True))
    assert names("in/d.pdf", pages=Pages()) == ["in/d.pdf"]
    assert names("in/d.pdf") == ["in/d.pdf"]


@pytest.mark.parametrize("text", ["", "0", "x", "3-2", "-3", "1,2", "all pages", "2--3", "1.5"])
def test_wrong_pages_are_told(text: str) -> None:
    """A wrong page range is an error."""
    with pytest.raises(RequestError, match="pages"):
        Pages.parse(text)


def test_a_frame_is_part_of_the_name(folder: Path) -> None:
    """A frame is a part of the picture's name, so answers about two frames differ and a drawing shows the
    right one."""
    (item,) = Sources(["in/a.png"], frame=3).items()
    assert (item.picture, item.frame) == ("in/a.png#frame=3", 3)
    assert item_named(item.picture).frame == 3
    (folder / "in" / "b#frame=2").write_bytes(PNG)
    assert item_named("in/b#frame=2").frame is None  # a file has this name


def test_an_unreadable_picture_is_an_error_of_its_own(folder: Path) -> None:
    """A picture that can't be read is an ImageError when it is read."""
    for name in ("in/gone.png", "tar://x.png::gone.tar", "memory://gone/x.png"):
        with pytest.raises(ImageError, match="can't be read"):
            item_named(name).read()


def test_a_scheme_that_is_not_known_is_told() -> None:
    """An unknown URL scheme is an error that names it."""
    with pytest.raises(RequestError, match=r"nosuch://.*can't be read"):
        names("nosuch://bucket/a.png")


def test_a_picture_is_opened_up_to_the_limit_of_its_reader(tmp_path: Path) -> None:
    """A picture is opened up to its reader's limit, even above the default limit, as FLORENCE_MAX_IMAGE_BYTES
    allows."""
    (tmp_path / "large.png").write_bytes(PNG + bytes(DEFAULT_LIMITS.max_bytes))
    item = item_named(str(tmp_path / "large.png"))
    assert item.image(replace(DEFAULT_LIMITS, max_bytes=2 * DEFAULT_LIMITS.max_bytes)).size == (48, 32)
    with pytest.raises(ImageTooLarge, match="bytes allowed"):
        item.image()
