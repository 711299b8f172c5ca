"""`florence export`: labels for other programs, captions beside pictures, label maps, and errors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bulk_runs import answer
from pdfs import pdf
from pictures import drawn, saved
from PIL import Image

from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_line
from florence.bulk.question import PictureQuestion
from florence.export.labelstudio import label_config
from florence.types.results import Instance, OcrRegion, OcrRegions, Segmentation
from florence.types.tasks import TASKS, Task

Run = Callable[..., tuple[int, str, str]]
SIZE = (48, 32)


def line(picture: str, task: str, said: str = "", result: Any = None, size: tuple[int, int] = SIZE) -> str:
    """A line of `florence bulk` with this result."""
    made = answer(TASKS[task], said, size)
    made = made if result is None else made.model_copy(update={"result": result})
    return answer_line(PictureItem(picture, picture), PictureQuestion(TASKS[task]), made)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with pictures that have SIZE when upright; one is rotated by its EXIF data."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(saved(drawn(*SIZE), "PNG"))
    (tmp_path / "in" / "a.jpg").write_bytes(saved(drawn(*SIZE), "JPEG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in" / "turned.jpg").write_bytes(saved(drawn(SIZE[1], SIZE[0]), "JPEG", exif=exif))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    """Write a file with these lines."""
    (folder / "r.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "r.jsonl"


BOXES = [("in/a.png", "<OD>"), ("in/a.jpg", "<OD>"), ("in/turned.jpg", "<OD>"), ("in/a.png", "<CAPTION>")]


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_supervision_reads_what_it_wrote(florence: Run, folder: Path, format: str) -> None:
    """supervision reads the exported boxes and classes; pictures with one stem get two names.

    A rotated picture is stored upright, and the others unchanged.
    """
    results = write(folder, *(line(*each) for each in BOXES))
    assert florence("export", results, "--as", format, "--out", "out")[0] == 0
    files = sorted((folder / "out" / "images").iterdir())
    assert [file.name for file in files] == ["a.png", "a_2.jpg", "turned.png"]
    assert files[1].read_bytes() == (folder / "in" / "a.jpg").read_bytes()
    assert Image.open(io.BytesIO(files[2].read_bytes())).size == SIZE
    from florence.export.detections import load_supervision

    dataset = load_supervision().DetectionDataset
    if format == "yolo":
        data = dataset.from_yolo("out/images", "out/labels", "out/data.yaml")
    else:
        data = dataset.from_pascal_voc("out/images", "out/annotations")
    assert data.classes == ["car", "tree"]
    for _, _, found in data:
        assert found.class_id.tolist() == [1, 0]
        assert abs(found.xyxy - [2, 3, 20, 21]).max() <= 1


def test_polygons_are_masks_in_yolo(florence: Run, folder: Path) -> None:
    """An item with polygons has a polygon in its YOLO line, not only its box."""
    thing = Instance(label="roof", polygons=[[4, 4, 40, 4, 22, 28]], score=0.5)
    task = "<REFERRING_EXPRESSION_SEGMENTATION>"
    results = write(folder, line("in/a.png", task, result=Segmentation(instances=[thing])))
    assert florence("export", results, "--as", "yolo", "--out", "out")[0] == 0
    words = (folder / "out" / "labels" / "a.txt").read_text().split()
    assert words[0] == "0"
    assert len(words) > 5


def test_coco_keeps_scores_and_the_maps_numbers(florence: Run, folder: Path) -> None:
    """All answers about a picture belong to one COCO image, and category ids come from the label map."""
    results = write(folder, *(line(*each) for each in BOXES))
    (folder / "map.json").write_text('{"tree": 7, "car": 3}')
    assert florence("export", results, "--as", "coco", "--out", "out", "--label-map", "map.json")[0] == 0
    content = json.loads((folder / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["in/a.png", "in/a.jpg", "in/turned.jpg"]
    assert {each["category_id"] for each in content["annotations"]} == {3, 7}
    assert {each["score"] for each in content["annotations"]} == {0.9}
    assert content["categories"] == [{"id": 7, "name": "tree"}, {"id": 3, "name": "car"}]


def test_supervision_and_pycocotools_read_coco(florence: Run, folder: Path) -> None:
    """supervision and pycocotools read the boxes, classes and masks of the COCO file."""
    library = pytest.importorskip("supervision")
    leaf = Instance(label="leaf", polygons=[[2, 2, 22, 2, 22, 22, 2, 22]], score=0.7)
    region = line("in/a.jpg", "<REGION_TO_SEGMENTATION>", result=Segmentation(instances=[leaf]))
    results = write(folder, line("in/a.png", "<OD>"), region)
    (folder / "map.json").write_text(json.dumps({"tree": 7, "car": 3, "leaf": 9}))
    assert florence("export", results, "--as", "coco", "--out", "out", "--label-map", "map.json")[0] == 0
    file = str(folder / "out" / "annotations.json")
    read = library.DetectionDataset.from_coco(images_directory_path=str(folder), annotations_path=file)
    assert read.classes == ["car", "tree", "leaf"]
    boxes, masks = (next(one for name, _, one in read if name.endswith(end)) for end in ("png", "jpg"))
    assert (boxes.class_id.tolist(), boxes.xyxy.tolist()) == ([1, 0], [[2, 3, 20, 21]] * 2)
    assert masks.mask.sum() == pytest.approx(20 * 20, rel=0.15)
    coco, mask = pytest.importorskip("pycocotools.coco").COCO(file), pytest.importorskip("pycocotools.mask")
    assert [coco.cats[one["category_id"]]["name"] for one in coco.anns.values()] == ["tree", "car", "leaf"]
    assert mask.area(coco.annToRLE(coco.anns[3])) == pytest.approx(20 * 20, rel=0.15)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.txt", "tree\ncar\n"),
        ("m.json", '["tree", "car"]'),
        ("m.yaml", "tree: 1\ncar: 2\n"),
        ("data.yaml", "nc: 2\nnames: [tree, car]\n"),
        ("yolo.yaml", "names: {1: tree, 2: car}\n"),
        ("coco.json", '{"images": [], "categories": [{"id": 1, "name": "tree"}, {"id": 2, "name": "car"}]}'),
    ],
)
def test_label_maps_come_in_the_usual_files(florence: Run, folder: Path, name: str, content: str) -> None:
    """A label map is read from each usual format."""
    (folder / name).write_text(content)
    results = write(folder, line("in/a.png", "<OD>"))
    assert florence("export", results, "--as", "coco", "--out", "out", "--label-map", name)[0] == 0
    made = json.loads((folder / "out" / "annotations.json").read_text())
    assert [(each["category_name"], each["category_id"]) for each in made["annotations"]] == [
        ("tree", 1), ("car", 2),
    ]  # fmt: skip


def test_a_label_that_the_map_lacks_is_told(florence: Run, folder: Path) -> None:
    """A label that the map lacks is an error, or with --only-labels it is left out and counted; an invalid
    map is an error."""
    results = write(folder, line("in/a.png", "<OD>"))
    (folder / "map.txt").write_text("car\n")
    command = ("export", results, "--as", "coco", "--out", "out", "--label-map", "map.txt")
    status, _, err = florence(*command)
    assert (status, "lacks 1 labels of these answers: 'tree'" in err) == (2, True)
    assert not (folder / "out").exists()
    status, _, err = florence(*command, "--only-labels")
    assert status == 0
    assert "1 labels are left out: 'tree'" in err
    (folder / "map.yaml").write_text("# none\n")
    status, _, err = florence(*command[:5], "new", "--label-map", "map.yaml")
    assert (status, "map.yaml is not a label map: it is empty" in err) == (2, True)
    (folder / "map.json").write_text("7")
    status, _, err = florence(*command[:5], "new", "--label-map", "map.json")
    assert (status, "is not a label map" in err) == (2, True)


def test_label_studio_gets_predictions(florence: Run, folder: Path) -> None:
    """Label Studio gets places in percent, polygons, words with their text and captions; its interface names
    each label."""
    quad = OcrRegions(regions=[OcrRegion(text="EXIT", quad=(4, 4, 24, 4, 24, 12, 4, 12), score=0.75)])
    lines = [line("in/a.png", "<OD>"), line("in/a.png", "<OCR_WITH_REGION>", result=quad)]
    results = write(folder, *lines, line("in/a.png", "<CAPTION>", "a car"))
    assert florence("export", results, "--as", "labelstudio", "--out", "out")[0] == 0
    (task,) = json.loads((folder / "out" / "tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=in/a.png"}
    first, second, polygon, words, caption = task["predictions"][0]["result"]
    assert first["value"]["rectanglelabels"] == ["tree"]
    assert second["value"]["x"] == pytest.approx(100 * 2 / 48)
    assert first["value"]["height"] == pytest.approx(100 * 18 / 32)
    assert polygon["value"]["points"][2] == pytest.approx([50, 37.5])
    assert (polygon["id"], words["value"]["text"]) == (words["id"], ["EXIT"])
    assert caption["value"] == {"text": ["a car"]}
    root = ElementTree.fromstring((folder / "out" / "label_config.xml").read_text())
    named = {each.get("name") for each in root}
    assert {each["from_name"] for each in task["predictions"][0]["result"]} <= named
    assert {each.get("value") for each in root.iter("Label")} == {"car", "text", "tree"}
    assert "&lt;a &amp; b&gt;" in label_config(["<a & b>"])


def test_captions_lie_beside_the_pictures(florence: Run, folder: Path) -> None:
    """Captions are written beside the pictures or into a directory, and a second export changes nothing.

    A file with another text stays and is reported, and two texts of one picture need a task.
    """
    results = write(
        folder, line("in/a.png", "<CAPTION>", "a car"), line("in/turned.jpg", "<CAPTION>", "a tree")
    )
    for _ in range(2):
        assert florence("export", results, "--as", "txt")[0] == 0
        assert (folder / "in" / "a.txt").read_text() == "a car\n"
    (folder / "in" / "a.txt").write_text("mine")
    status, _, err = florence("export", results, "--as", "txt")
    assert (status, "a.txt exists with another text" in err) == (3, True)
    assert (folder / "in" / "a.txt").read_text() == "mine"
    assert florence("export", results, "--as", "txt", "--out", "out")[0] == 0
    assert {path.name for path in (folder / "out").iterdir()} == {"a.txt", "turned.txt"}
    results = write(folder, line("in/a.png", "<CAPTION>", "a"), line("in/a.png", "<DETAILED_CAPTION>", "b"))
    status, _, err = florence("export", results, "--as", "txt", "--out", "two")
    assert (status, "choose it with --task" in err) == (2, True)
    assert florence("export", results, "--as", "txt", "--out", "two", "--task", "detailed_caption")[0] == 0
    assert (folder / "two" / "a.txt").read_text() == "b\n"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_task_is_chosen_by_any_of_its_names(florence: Run, folder: Path, task: Task) -> None:
    """`--task` takes what the other commands take, and leaves out the answers of the other fourteen."""
    results = write(folder, *(line("in/a.png", token, "x") for token in TASKS))
    for number, name in enumerate((task.token, task.token.strip("<>"), task.token.lower(), task.name)):
        out = folder / f"out{number}"
        assert florence("export", results, "--as", "drawn", "--out", out, "--task", name)[0] == 0
        drawn = re.sub(r"\W+", "", task.token).lower()
        assert [path.name for path in out.iterdir()] == [f"a_{drawn}.png"]


def test_captions_of_two_pictures_never_share_a_file(florence: Run, folder: Path) -> None:
    """Pictures with one stem, and a page, get separate caption files."""
    lines = [line("in/a.png", "<CAPTION>", "1"), line("in/a.jpg", "<CAPTION>", "2")]
    results = write(folder, *lines, line("in/d.pdf#page=2", "<CAPTION>", "3"))
    assert florence("export", results, "--as", "txt", "--out", "out")[0] == 0
    texts = {path.read_text() for path in (folder / "out").iterdir()}
    assert texts == {"1\n", "2\n", "3\n"}
    status, _, err = florence("export", results, "--as", "txt")
    assert (status, "exists with another text" in err) == (3, True)


def test_a_page_is_drawn_and_stored(florence: Run, folder: Path) -> None:
    """A page is opened by the name in its answer, drawn and stored."""
    (folder / "in" / "d.pdf").write_bytes(pdf())
    results = write(folder, line("in/d.pdf#page=2", "<OD>", size=(300, 150)))
    for format, made in (("drawn", "d_page_2_od.png"), ("voc", "images/d_page_2.png")):
        assert florence("export", results, "--as", format, "--out", format)[0] == 0
        image = Image.open(io.BytesIO((folder / format / made).read_bytes())).convert("RGB")
        assert image.getpixel((70, 70)) == (0, 0, 255)


def test_what_cant_be_exported_is_named(florence: Run, folder: Path) -> None:
    """A missing or changed picture and a wrong line are reported; the others are exported."""
    lines = [line("in/gone.png", "<OD>"), line("in/a.png", "<OD>"), line("in/a.jpg", "<OD>", size=(9, 9))]
    results = write(folder, *lines, "no answer\n")
    status, _, err = florence("export", results, "--as", "yolo", "--out", "out")
    assert status == 3
    assert "gone.png" in err
    assert "9x9 pixels; this one has 48x32" in err
    assert "line 4" in err
    assert err.splitlines()[-1] == "florence: 1 pictures in out, 3 not exported"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--as", "coco"), "needs --out"),
        (("--as", "coco", "--out", "in"), "not a new or empty directory"),
        (("--as", "voc", "--out", "o", "--task", "ocr"), "holds no answer of these tasks"),
        (("--as", "yolo", "--out", "o", "--task", "caption"), "export them as txt"),
        (("--as", "txt", "--out", "o", "--task", "od"), "holds no text of these tasks"),
    ],
)
def test_wrong_exports_write_nothing(
    florence: Run, folder: Path, options: tuple[str, ...], words: str
) -> None:
    """A wrong export writes no files."""
    results = write(folder, *(line(*each, "x") for each in BOXES))
    status, _, err = florence("export", results, *options)
    assert (status, words in err) == (2, True), err
    assert not (folder / "o").exists()


def test_parquet_is_exported_alike(florence: Run, folder: Path) -> None:
    """`draw` and `export` also read Parquet files and parts."""
    from florence.bulk.items import PictureItem
    from florence.bulk.question import PictureQuestion
    from florence.bulk.store import Store

    asked = PictureQuestion(TASKS["<OD>"])
    for name, rows in (("r.parquet", 0), ("parts", 1)):
        with Store(folder / name, rows) as store:
            store.add(PictureItem("in/a.png", ""), asked, answer(asked.task))
        assert florence("draw", name, f"drawn {name}")[0] == 0
        assert florence("export", name, "--as", "coco", "--out", f"coco {name}")[0] == 0
        assert len(json.loads((folder / f"coco {name}" / "annotations.json").read_text())["annotations"]) == 2
