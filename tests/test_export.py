"""Results drawn on their pictures, and exported as COCO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from found import BOXES, PLACES, POLYGONS, QUADS, SIZE, answer
from pictures import saved
from PIL import Image, ImageChops

from florence.answers import parse_answer
from florence.errors import ImageError, RequestError
from florence.export.annotation import Drawable
from florence.export.coco import Categories, coco_dataset
from florence.export.drawing import PALETTE
from florence.types.results import Detection, Detections, Text

GREYS = [0, 64, 128, 192, 255]


def plain(colour: Any, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


def changed(before: Image.Image, after: Image.Image) -> np.ndarray[Any, Any]:
    """The change of each pixel's colour, [H, W]."""
    return np.asarray(ImageChops.difference(before, after)).max(-1)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("grey", GREYS)
def test_polygons_are_seen_on_any_background(name: str, grey: int) -> None:
    """A polygon's lines differ strongly from a background of any grey."""
    image = plain((grey, grey, grey))
    difference = changed(image, PLACES[name].draw(image))
    for annotation in PLACES[name].annotations():
        for polygon in annotation.polygons:
            for x, y in zip(polygon[0::2], polygon[1::2], strict=True):
                around = difference[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5]
                assert around.max() > 90


@pytest.mark.parametrize("size", [(40, 30), (240, 160), (2000, 1500)])
def test_labels_have_contrast_and_stay_in_the_picture(size: tuple[int, int]) -> None:
    """A long label is cut to the picture's width and has contrast on its plate; only a picture without room
    grows."""
    long = Detections(detections=[Detection(label="a very long label " * 30, box=(5, 5, 25, 25), score=0.5)])
    drawn = np.asarray(long.draw(plain("white", size)).convert("L")).astype(int)
    assert drawn.shape == size[::-1] if size[0] > 40 else drawn.shape[1] < 2.5 * size[0]
    assert drawn.max() - drawn.min() > 120


def test_plates_of_neighbours_do_not_cover_each_other() -> None:
    """The plates of six things at one place are all visible in their own colours."""
    labels = [f"Thing {letter}" for letter in "ABCDEF"]
    crowd = Detections(detections=[Detection(label=label, box=(300, 200, 400, 300)) for label in labels])
    drawn = crowd.draw(plain("black", (800, 600)))
    seen = {colour for count, colour in drawn.getcolors(10**6) or [] if count > 300}
    assert set(PALETTE[: len(labels)]) <= seen


def test_the_picture_given_is_not_touched() -> None:
    """The given picture stays unchanged."""
    image = plain("grey")
    before = image.copy()
    assert BOXES.draw(image) is not image
    assert ImageChops.difference(image, before).getbbox() is None


def test_a_text_stands_below_the_picture() -> None:
    """A text is drawn below the unchanged picture, in a strip that grows with the text."""
    image = plain("navy")
    short, long = Text(text="a car").draw(image), Text(text="a car and a word " * 20 + "x" * 200).draw(image)
    for drawn in (short, long):
        assert drawn.width == image.width
        assert ImageChops.difference(drawn.crop((0, 0, *SIZE)), image).getbbox() is None
    assert SIZE[1] < short.height < long.height
    assert Text(text="").draw(image).size == SIZE


def test_files_are_turned_as_the_service_turns_them(tmp_path: Path) -> None:
    """Bytes and paths are rotated by their EXIF data, as in the service, since the answer's pixels refer to
    the rotated picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(plain("green"), "JPEG", exif=exif)
    path = tmp_path / "turned.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        assert BOXES.draw(source).size == SIZE[::-1]


def test_what_can_not_be_read_is_told(tmp_path: Path) -> None:
    """A picture or a font that can't be read is an error that names it."""
    with pytest.raises(ImageError, match="can't be read"):
        BOXES.draw(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"font .*missing\.ttf"):
        BOXES.draw(plain("grey"), font=tmp_path / "missing.ttf")


def test_boxes_as_coco() -> None:
    """COCO boxes are x, y, width, height of the sorted corners; a thing without a label is an "object", and a
    missing score is left out."""
    first, second = BOXES.to_coco(image_id=7, categories=["car", "object"])
    assert first == {
        "id": 1,
        "image_id": 7,
        "category_id": 1,
        "category_name": "car",
        "bbox": [40, 60, 80, 80],
        "area": 6400,
        "segmentation": [],
        "iscrowd": 0,
        "score": 0.93,
    }
    assert second["bbox"] == [150.5, 90.0, 80.0, 60.0]
    assert (second["category_id"], second["category_name"]) == (2, "object")
    assert "score" not in second


def test_polygons_as_coco() -> None:
    """All polygons of one thing are one annotation, and a thing without polygons has none."""
    (leaf,) = POLYGONS.to_coco(categories=["leaf"])
    assert leaf["segmentation"] == POLYGONS.instances[0].polygons
    assert leaf["bbox"] == [40, 50, 160, 90]
    assert leaf["area"] == 80 * 80 + 50 * 50 / 2


def test_words_read_are_of_one_category() -> None:
    """Words that were read belong to the category "text"."""
    (word,) = QUADS.to_coco(categories=["text"])
    assert (word["category_name"], word["text"]) == ("text", "EXIT")
    assert word["segmentation"] == [list(QUADS.regions[0].quad)]


def test_given_categories_are_kept() -> None:
    """Given category ids are kept, and a label without an id is an error."""
    assert BOXES.to_coco(categories={"object": 3, "car": 9})[0]["category_id"] == 9
    with pytest.raises(RequestError, match="no id for 'object'"):
        BOXES.to_coco(categories={"car": 9})


FORMS: dict[str, tuple[Any, list[int], list[int]]] = {  # ids of "object" and "car" in COCO and in supervision
    "names": (["tree", "car", "object"], [3, 2], [2, 1]),
    "mapping": ({"car": 7, "object": 0}, [0, 7], [0, 7]),
    "COCO": ([{"id": 5, "name": "car", "supercategory": ""}, {"id": 9, "name": "object"}], [9, 5], [9, 5]),
    "growing": (Categories(["object"]), [1, 2], [1, 2]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_label_map_has_several_forms(form: str) -> None:
    """Categories may be ids by name, a list of names, or a COCO file's categories; each export uses these
    ids."""
    categories, in_coco, in_supervision = FORMS[form]
    swapped = Detections(detections=BOXES.detections[::-1])
    for result, order in ((swapped, 1), (BOXES, -1)):
        assert [each["category_id"] for each in result.to_coco(categories=categories)] == in_coco[::order]
        assert result.to_supervision(categories=categories).class_id.tolist() == in_supervision[::order]
        made = coco_dataset([("a", answer(result))], categories=categories)
        assert [each["category_id"] for each in made["annotations"]] == in_coco[::order]


@pytest.mark.parametrize("result", [BOXES, QUADS, Detections(detections=[]), Text(text="a")])
def test_labels_are_not_numbered_as_they_come_without_being_told(result: Drawable) -> None:
    """Without categories each export is an error that says what to pass, whatever was found."""
    for export in (
        result.to_coco,
        result.to_supervision,
        lambda: coco_dataset([("a", answer(result))]),
    ):
        with pytest.raises(RequestError, match=r"categories is missing.*\{'car': 1.*Categories\(\)"):
            export()


@pytest.mark.parametrize(
    "wrong",
    [
        "car",
        ["car", 3],
        {"car": "1"},
        {"car": True},
        [{"name": "car"}],
        ["car", "car"],
        [None],
        {3: 3},
        {"car", "object"},
        3,
    ],
)
def test_what_is_no_label_map_is_refused(wrong: Any) -> None:
    """An invalid label map is refused."""
    for export in (BOXES.to_coco, BOXES.to_supervision):
        with pytest.raises(RequestError, match="categories"):
            export(categories=wrong)


def test_the_categories_of_answers_do_not_depend_on_their_order() -> None:
    """Categories of answers are numbered alphabetically, independent of the answers' order."""
    results = [BOXES, POLYGONS, QUADS, Text(text="x")]
    expected = {"car": 1, "leaf": 2, "object": 3, "text": 4}
    assert Categories.of(results) == Categories.of(map(answer, results[::-1])) == expected
    assert list(Categories.of(results, first=0).values()) == [0, 1, 2, 3]


def test_a_data_set_gives_its_categories_to_the_next() -> None:
    """A data set lists its whole label map, and the next data set can use the same ids."""
    first = coco_dataset([("a", answer(BOXES))], categories=["tree", "object", "car"])
    assert [each["name"] for each in first["categories"]] == ["tree", "object", "car"]
    again = coco_dataset([("b", answer(BOXES))], categories=first["categories"])
    assert again["categories"] == first["categories"]
    with pytest.raises(RequestError, match="same id"):
        coco_dataset([("a", answer(BOXES))], categories={"car": 1, "object": 1})


def test_shared_categories_keep_their_ids_over_pictures() -> None:
    """With one `Categories` for many calls a label always has the same id."""
    other = Detections(detections=[Detection(label="tree", box=(1, 2, 3, 4)), BOXES.detections[0]])
    for first, ids in ((1, Categories()), (0, Categories(first=0))):
        BOXES.to_coco(categories=ids)
        assert other.to_supervision(categories=ids).class_id.tolist() == [first + 2, first]
        assert ids == {"car": first, "object": first + 1, "tree": first + 2}


def test_a_parsed_text_is_drawn_and_exported_as_an_answer_is() -> None:
    """A parsed text is drawn and exported as an answer, without a picture's size if nothing is in pixels."""
    parsed = parse_answer("<OD>", "car<loc_1><loc_2><loc_30><loc_40>", image_size=SIZE)
    assert parsed.to_coco(categories=["car"]) == parsed.result.to_coco(categories=["car"])
    assert parsed.draw(plain("grey")).size == SIZE
    assert len(parsed.to_supervision(categories=["car"])) == 1
    assert parse_answer("<CAPTION>", "a car").to_coco(categories=[]) == []


def test_many_answers_make_one_data_set() -> None:
    """A data set of many answers has unique ids and shared categories, and includes pictures
    without things."""
    results: dict[str, Drawable] = {"a": BOXES, "b": Text(text="x"), "c": POLYGONS, "d": BOXES}
    answers = ((name, answer(result)) for name, result in results.items())
    made = coco_dataset(answers, categories=Categories())
    assert [image["file_name"] for image in made["images"]] == ["a", "b", "c", "d"]
    assert {image["width"] for image in made["images"]} == {240}
    assert [each["id"] for each in made["annotations"]] == [1, 2, 3, 4, 5]
    assert [each["image_id"] for each in made["annotations"]] == [1, 1, 3, 4, 4]
    names = {category["id"]: category["name"] for category in made["categories"]}
    assert sorted(names.values()) == ["car", "leaf", "object"]
    assert all(names[each["category_id"]] == each["category_name"] for each in made["annotations"])


def test_an_answer_draws_and_files_as_its_result() -> None:
    """An answer is drawn and exported as its result."""
    image = plain("grey")
    ids = {"car": 1, "object": 2}
    assert answer(BOXES).to_coco(image_id=7, categories=ids) == BOXES.to_coco(image_id=7, categories=ids)
    assert ImageChops.difference(answer(BOXES).draw(image), BOXES.draw(image)).getbbox() is None


def test_results_need_no_pillow_until_they_are_drawn() -> None:
    """Pillow is imported only when a result is drawn."""
    program = (
        "import sys, florence.types.results as s; s.Text(text='a').to_coco(categories=[]); "
        "print('PIL' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
