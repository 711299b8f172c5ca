"""`florence draw`: the drawings of a file's lines, and reports about lines that can't be drawn."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_model import RESULT
from pictures import saved
from PIL import Image

from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_line
from florence.bulk.question import PictureQuestion
from florence.export.drawing import Colours
from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detection, Detections, Instance, Segmentation, Text
from florence.types.tasks import TASKS

Run = Callable[..., tuple[int, str, str]]
SIZE = (120, 90)


def line(picture: object, task: str, result: Any, size: tuple[int, int] = SIZE) -> str:
    """A line of `florence bulk` with this result."""
    answer = TaskAnswer[Any](
        task=task,
        result=result,
        image_size=ImageSize(width=size[0], height=size[1]),
        finish_reason="stop",
        usage=Usage(picture_tokens=1, prompt_tokens=2, generated_tokens=3),
        timings=Timings(queue_s=0, encode_s=0, decode_s=0, total_s=0),
        checkpoint="fake",
    )
    return answer_line(PictureItem(str(picture), ""), PictureQuestion(TASKS["<OD>"]), answer)


def boxes(*labels: str) -> Detections:
    """A result with one box for each label."""
    return Detections(detections=[Detection(label=label, box=(10, 30, 60, 80)) for label in labels])


def contents(folder: Path) -> dict[str, Image.Image]:
    """The pictures in a folder by name."""
    return {path.name: Image.open(BytesIO(path.read_bytes())) for path in sorted(folder.iterdir())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures a.png and sub/a.jpg."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", SIZE, "grey"), "PNG"))
    (tmp_path / "sub" / "a.jpg").write_bytes(saved(Image.new("RGB", SIZE, "navy"), "JPEG"))
    return tmp_path


def results(folder: Path, *lines: str) -> Path:
    """Write a file with these lines."""
    path = folder / "results.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_each_answer_is_drawn_on_its_picture(florence: Run, folder: Path) -> None:
    """Each answer, of any task, is drawn as `draw` of the answer does it, in a file named by picture and
    task."""
    picture = folder / "a.png"
    file = results(folder, *(line(picture, each.token, RESULT[each.kind]) for each in TASKS.values()))
    status, printed, err = florence("draw", file, folder / "new" / "out")
    assert (status, printed, err) == (0, "", f"florence: {len(TASKS)} drawn in {folder / 'new' / 'out'}\n")
    drawn = contents(folder / "new" / "out")
    assert drawn.keys() == {f"a_{task.token.strip('<>').lower()}.png" for task in TASKS.values()}
    shared = Colours()
    for task in TASKS.values():
        same = RESULT[task.kind].draw(picture, colours=shared)  # type: ignore[attr-defined]  # all of them are drawable
        assert drawn[f"a_{task.token.strip('<>').lower()}.png"].convert("RGB").tobytes() == same.tobytes()


def test_pictures_of_one_name_and_lines_of_one_task_have_files_of_their_own(
    florence: Run, folder: Path
) -> None:
    """Pictures of one name, and several lines of one task, get separate files; paths are relative to
    --pictures."""
    found = boxes("car")
    file = results(folder, *(line(name, "<OD>", found) for name in ("a.png", "sub/a.jpg", "a.png")))
    assert florence("draw", file, folder / "out", "--pictures", folder)[0] == 0
    drawn = contents(folder / "out")
    assert list(drawn) == ["a_od.png", "a_od_2.png", "a_od_3.png"]
    corners = [each.convert("RGB").getpixel((0, 0)) for each in drawn.values()]
    assert corners[0] == corners[2] == (128, 128, 128) != corners[1]


def test_a_label_has_one_colour_in_all_pictures(florence: Run, folder: Path) -> None:
    """A label has the same colour in all pictures: that of --colours, or one from the palette."""
    lines = [line(folder / "a.png", "<OD>", boxes(*labels)) for labels in (["car", "tree"], ["tree"])]
    file = results(folder, *lines)
    assert florence("draw", file, folder / "one")[0] == 0
    first, second = (set(pixels_of(each)) for each in contents(folder / "one").values())
    assert len(first & second - {(128, 128, 128), (16, 16, 16)}) == 1
    assert (
        florence("draw", file, folder / "two", "--colours", "tree=#fe0000", "--colours", "a=b=blue")[0] == 0
    )
    assert all((254, 0, 0) in pixels_of(each) for each in contents(folder / "two").values())


def pixels_of(image: Image.Image) -> list[Any]:
    """The colours of more than 40 pixels."""
    return [colour for count, colour in image.convert("RGB").getcolors(10**5) or [] if count > 40]


def test_overlays_are_transparent_and_masks_as_told(florence: Run, folder: Path) -> None:
    """An overlay is transparent outside its masks, which have the given opacity."""
    mask = Segmentation(instances=[Instance(label="", polygons=[[20, 20, 100, 20, 100, 80, 20, 80]])])
    file = results(folder, line(folder / "a.png", "<OD>", mask))
    assert florence("draw", file, folder / "out", "--overlay", "--opacity", "1")[0] == 0
    (drawn,) = contents(folder / "out").values()
    assert (drawn.mode, drawn.size) == ("RGBA", SIZE)
    alpha = drawn.getchannel("A")
    assert (alpha.getpixel((5, 5)), alpha.getpixel((60, 50))) == (0, 255)


def test_what_cant_be_drawn_is_counted_and_named(florence: Run, folder: Path) -> None:
    """A missing, broken or changed picture, and a wrong line, are reported and counted; the others
    are drawn."""
    (folder / "broken.png").write_bytes(b"no picture")
    good = folder / "a.png"
    file = results(
        folder,
        "no answer\n",
        line(good, "<OD>", boxes("car")),
        line(folder / "gone.png", "<OD>", boxes("car")),
        line(folder / "broken.png", "<OD>", boxes("car")),
        line(good, "<OD>", boxes("car"), (640, 480)),
        line(good, "<CAPTION>", Text(text="a car")),
    )
    status, _, err = florence("draw", file, folder / "out")
    assert status == 3
    *named, last = err.splitlines()
    assert last == f"florence: 2 drawn in {folder / 'out'}, 4 not drawn"
    assert [each.split(":")[1] for each in named] == [" not drawn"] * 4
    for told, words in zip(named, ("line 1", "gone.png, <OD>", "broken.png", "640x480.*120x90"), strict=True):
        assert all(word in told for word in words.split(".*"))
    assert len(contents(folder / "out")) == 2
    status, _, err = florence("draw", file, folder / "overlays", "--overlay")
    assert status == 3
    assert "a.png, <CAPTION>: a text has no location in the picture" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--colours", "car"), "LABEL=COLOUR"),
        (("--colours", "=red"), "LABEL=COLOUR"),
        (("--colours", "car=reddish"), "'reddish' is not a colour"),
        (("--opacity", "2"), "from 0 to 1"),
        (("--font", "no/such.ttf"), "font 'no/such.ttf' can't be read"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    florence: Run, folder: Path, options: tuple[str, ...], words: str
) -> None:
    """A wrong option is an error before any file is written."""
    file = results(folder, line(folder / "a.png", "<OD>", boxes("car")))
    status, _, err = florence("draw", file, folder / "out", *options)
    assert status == 2
    assert words in err
    assert not (folder / "out").exists()


def test_nothing_is_written_over(florence: Run, folder: Path) -> None:
    """OUT must be new or empty, so neither pictures nor earlier drawings are overwritten."""
    file = results(folder, line(folder / "a.png", "<OD>", boxes("car")))
    before = sorted(folder.rglob("*"))
    for out in (folder, folder / "sub", folder / "a.png"):
        status, _, err = florence("draw", file, out)
        assert status == 2
        assert "name another OUT" in err
    assert sorted(folder.rglob("*")) == before
    (folder / "empty").mkdir()
    assert florence("draw", file, folder / "empty")[0] == 0


def test_a_file_without_answers_is_told(florence: Run, folder: Path) -> None:
    """A file without answers, and a missing file, are errors."""
    status, _, err = florence("draw", results(folder), folder / "out")
    assert (status, err) == (2, f"florence: {folder / 'results.jsonl'} holds no answer\n")
    assert florence("draw", folder / "absent.jsonl", folder / "out")[0] == 1
