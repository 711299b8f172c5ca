"""`florence bulk` with several tasks, other sources, several services, and labels at the end."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from bulk_runs import echo
from pdfs import pdf
from pictures import drawn, saved
from serving import Server

from florence.cli.asking import most_bytes

Run = Callable[..., tuple[int, str, str]]
PNG = saved(drawn(48, 32))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with four pictures in `in`."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the service by an echo."""
    monkeypatch.setattr("florence.cli.bulk.open_asker", lambda *_: nullcontext(echo))


def rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("echoed")
def test_several_tasks_are_completed_together(florence: Run, folder: Path) -> None:
    """Each picture is asked about each task; in a later run only a new task is asked."""
    command = ("bulk", "in", "--out", "r.jsonl", "--task", "caption", "--task", "od")
    assert florence(*command)[2] == "florence: 8 answered\n"
    assert florence(*command, "--task", "ocr")[2] == "florence: 4 answered, 8 were there before\n"
    assert Counter(row["task"] for row in rows("r.jsonl")) == {"<CAPTION>": 4, "<OD>": 4, "<OCR>": 4}


@pytest.mark.usefixtures("echoed")
def test_a_text_goes_to_the_tasks_that_take_one(florence: Run, folder: Path) -> None:
    """A text goes to the tasks that accept one; arguments that no task accepts, and other mistakes, are
    refused."""
    asked = ("--task", "caption", "--task", "open_vocabulary_detection")
    assert florence("bulk", "in/0.png", "--out", "r.jsonl", *asked, "--text", "a car")[0] == 0
    assert [(row["task"], row["text"]) for row in rows("r.jsonl")] == [
        ("<CAPTION>", None), ("<OPEN_VOCABULARY_DETECTION>", "a car"),
    ]  # fmt: skip
    for more, words in (
        ((*asked, "--text", "x", "--region", "1,2,3,4"), "none of these tasks takes what --region gives"),
        (
            ("--task", "caption", "--task", "ocr", "--text", "x"),
            "none of these tasks takes what --text gives",
        ),
        (("--task", "caption", "--task", "caption"), "asked twice"),
        (("--task", "open_vocabulary_detection"), "text"),
        ((), "no task given"),
        (("--task", "caption", "--shard", "9/8"), "such as 3/8"),
        (("--task", "caption", "--pages", "x"), "pages are all"),
        (("--task", "caption", "--page", "2", "--pages", "2"), "--page and --pages are both given"),
        (("--task", "caption", "--export", "coco"), "needs --out"),
        (("--task", "caption", "--export", "coco=x", "--label-map", "in/0.png"), "label map"),
        (("--task", "caption", "--export", "svg=x"), "FORMAT=OUT"),
    ):
        status, _, err = florence("bulk", "in", "--out", "n.jsonl", *more)
        assert (status, words in err) == (2, True), err
        assert not (folder / "n.jsonl").exists()


@pytest.mark.usefixtures("echoed")
def test_a_file_of_tasks_and_a_manifest(florence: Run, folder: Path) -> None:
    """A file of tasks applies to all pictures, and a manifest gives the task of each of its rows."""
    (folder / "t.yaml").write_text("- caption\n- {task: open_vocabulary_detection, text: a tree}\n")
    assert florence("bulk", "in", "--out", "r.jsonl", "--tasks", "t.yaml")[2] == "florence: 8 answered\n"
    status, _, err = florence("bulk", "in", "--out", "r.jsonl", "--tasks", "t.yaml", "--text", "x")
    assert (status, "leave --text and --region out" in err) == (2, True)
    (folder / "m.csv").write_text(
        "picture,task,text,id\nin/0.png,ocr,,a\nin/0.png,ocr,,b\nin/1.png,caption,,a\n"
    )
    assert florence("bulk", "m.csv", "--out", "m.jsonl")[2] == "florence: 3 answered\n"
    assert {(row["id"], row["task"]) for row in rows("m.jsonl")} == {
        ("a", "<OCR>"), ("b", "<OCR>"), ("a", "<CAPTION>"),
    }  # fmt: skip
    assert florence("bulk", "m.csv", "--out", "m.jsonl")[2] == "florence: 0 answered, 3 were there before\n"


@pytest.mark.usefixtures("echoed")
def test_shards_together_are_all(florence: Run, folder: Path) -> None:
    """Two shards together ask about each picture once, and repeated pictures are counted."""
    for number in (1, 2):
        shard = ("--shard", f"{number}/2", "--out", f"{number}.jsonl")
        assert florence("bulk", "in", "in/0.png", "--task", "caption", *shard)[0] == 0
    first, second = ({row["picture"] for row in rows(f"{number}.jsonl")} for number in (1, 2))
    assert first | second == {f"in/{number}.png" for number in range(4)}
    assert not first & second
    _, _, err = florence("bulk", "in", "in/0.png", "--task", "caption", "--out", "all.jsonl")
    assert err == "florence: 1 skipped: named or asked twice\nflorence: 4 answered\n"


@pytest.mark.usefixtures("echoed")
def test_answers_come_in_order_where_asked(florence: Run, folder: Path) -> None:
    """With `--ordered`, answers are written in the order of the pictures."""
    assert florence("bulk", "in", "--task", "caption", "--out", "r.jsonl", "--ordered")[0] == 0
    assert [row["picture"] for row in rows("r.jsonl")] == [f"in/{number}.png" for number in range(4)]


@pytest.mark.usefixtures("echoed")
def test_a_page_and_a_frame_are_part_of_the_name(florence: Run, folder: Path) -> None:
    """A page and a frame are a part of the picture's name; `--page` leaves pictures without pages
    unchanged."""
    pages = [drawn(24, 16, frame=index) for index in range(3)]
    (folder / "in" / "e.tiff").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert florence("bulk", "in", "--task", "caption", "--out", "p.jsonl", "--page", "2")[0] == 0
    named = {f"in/{number}.png" for number in range(4)} | {"in/e.tiff#page=2"}
    assert {row["picture"] for row in rows("p.jsonl")} == named
    assert florence("bulk", "in/0.png", "--task", "caption", "--out", "f.jsonl", "--frame", "3")[0] == 0
    assert [row["picture"] for row in rows("f.jsonl")] == ["in/0.png#frame=3"]


@pytest.mark.usefixtures("echoed")
def test_labels_are_made_at_the_end(florence: Run, folder: Path) -> None:
    """`--export` writes the labels that `florence export` writes; a target that exists is refused before any
    request."""
    exports = ("--export", "coco=labels", "--export", "yolo=yolo")
    command = ("bulk", "in", "--task", "od", "--out", "r.jsonl", *exports)
    assert florence(*command)[0] == 0
    assert len(json.loads((folder / "labels" / "annotations.json").read_text())["images"]) == 4
    assert len(list((folder / "yolo" / "labels").iterdir())) == 4
    (folder / "r.jsonl").unlink()
    status, _, err = florence(*command)
    assert (status, "not a new or empty directory" in err) == (2, True)
    assert not (folder / "r.jsonl").exists()


@pytest.mark.slow
def test_pages_go_to_a_service(florence: Run, fake_server: Server, folder: Path) -> None:
    """Each page is sent to a service as a picture with its own name; a missing page fails alone."""
    (folder / "in" / "d.pdf").write_bytes(pdf())
    command = ("--task", "caption", "--task", "od", "--url", fake_server.url)
    status, _, err = florence("bulk", "in", "--out", "r.jsonl", "--pages", "2-", *command)
    assert (status, err.splitlines()[-1]) == (0, "florence: 12 answered")
    sizes = {row["picture"]: row["image_size"]["width"] for row in rows("r.jsonl")}
    assert sizes == {**{f"in/{n}.png": 48 for n in range(4)}, "in/d.pdf#page=2": 300, "in/d.pdf#page=3": 300}
    status, printed, _ = florence("run", "in/d.pdf", "caption", "--page", "3", "--url", fake_server.url)
    assert (status, printed) == (0, "a fake\n")
    status, _, err = florence("run", "in/d.pdf", "caption", "--page", "4", "--url", fake_server.url)
    assert (status, "page must be from 1 to 3, got 4" in err) == (2, True)


@pytest.mark.slow
def test_the_service_says_how_large_a_picture_may_be(demo_server: Server) -> None:
    """The limit on a picture's bytes is the service's, even if another service is dead; for a loaded model it
    is the setting."""
    dead = "http://127.0.0.1:9"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLORENCE_MAX_IMAGE_BYTES", "77")
        for urls, most in (([dead, demo_server.url], 20 * 2**20), ([], 77)):
            assert most_bytes(Namespace(url=urls, model="demo")) == most


@pytest.mark.slow
def test_a_dead_service_is_left_out(florence: Run, fake_server: Server, folder: Path) -> None:
    """A dead service is left out and the others answer; if none can be reached, the run fails."""
    dead = "http://127.0.0.1:9"
    command = ("bulk", "in", "--task", "caption", "--out", "r.jsonl")
    status, _, err = florence(*command, "--url", dead, "--url", fake_server.url)
    assert (status, err.splitlines()[-1]) == (0, "florence: 4 answered")
    assert f"florence: {dead} is left out, and tried again" in err
    (folder / "r.jsonl").unlink()
    status, _, err = florence(*command, "--url", dead, "--url", "http://127.0.0.1:8")
    assert status == 1
    assert "can't be reached" in err.splitlines()[-1]
