"""Places of labels, masks, colours by label, and transparent overlays."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from florence.errors import RequestError
from florence.export.drawing import PALETTE, Colours
from florence.export.geometry import Box
from florence.export.plates import lay_out
from florence.types.results import Detection, Detections, Instance, OcrRegion, OcrRegions, Segmentation, Text

SIZE = (320, 240)
SQUARE = [100.0, 80, 200, 80, 200, 160, 100, 160]
LEAF = Segmentation(instances=[Instance(label="leaf", polygons=[SQUARE])])
INSIDE, OUTSIDE = (150, 120), (250, 200)


def boxes(*labels: str) -> Detections:
    """Boxes with these labels, one below the other."""
    found = [Detection(label=label, box=(20, 30 + 60 * n, 80, 60 + 60 * n)) for n, label in enumerate(labels)]
    return Detections(detections=found)


def colours_of(image: Image.Image) -> set[Any]:
    """The colours of more than 100 pixels, which are those of lines and plates."""
    return {colour for count, colour in image.convert("RGB").getcolors(10**6) or [] if count > 100}


def crosses(one: Box, other: Box) -> bool:
    """True if the boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("seed", range(20))
def test_no_plate_lies_on_its_thing_or_on_another_plate(seed: int) -> None:
    """Each plate lies inside the drawing and overlaps neither its thing nor another plate, for
    random things."""
    rng = random.Random(seed)
    things: list[Box] = [(-2, -2, SIZE[0] + 2, SIZE[1] + 2)]
    for _ in range(rng.choice([1, 4, 8])):
        left, top = rng.uniform(-2, SIZE[0] - 10), rng.uniform(-2, SIZE[1] - 10)
        things.append((left, top, rng.uniform(left, SIZE[0]), rng.uniform(top, SIZE[1])))
    plates = [(rng.randint(10, 120), rng.randint(10, 20)) for _ in things]
    layout = lay_out(things, plates, SIZE, grow=True)
    assert layout.places.keys() == set(range(len(things)))
    assert 0 in layout.away  # the whole picture leaves no room beside it
    for number, place in layout.places.items():
        assert (place[2] - place[0], place[3] - place[1]) == pytest.approx(plates[number])
        assert 0 <= place[0] < place[2] <= layout.size[0]
        assert 0 <= place[1] < place[3] <= layout.size[1]
        assert not crosses(place, things[number]) or number in layout.away
        assert (place[0] > SIZE[0]) == (number in layout.away)
        others = [other for key, other in layout.places.items() if key != number]
        assert not any(crosses(place, other) for other in others)


def test_a_crowd_makes_the_picture_little_larger() -> None:
    """A crowd adds one column of labels, no higher than the picture."""
    rng = random.Random(0)
    crowd = [
        (x, y, x + 60, y + 60) for x, y in ((rng.uniform(0, 260), rng.uniform(0, 180)) for _ in range(150))
    ]
    layout = lay_out(crowd, [(70, 16)] * len(crowd), SIZE, grow=True)
    assert layout.places.keys() == set(range(len(crowd)))
    assert layout.size[0] <= SIZE[0] + 100
    assert layout.size[1] == SIZE[1]
    assert 10 <= len(layout.away) <= 12
    column = [layout.places[number] for number in layout.away]
    assert not any(crosses(one, other) for one, other in itertools.combinations(column, 2))


@pytest.mark.parametrize("box", [(0, 0, 320, 240), (0, 0, 320, 60), (100, 100, 140, 130), (0, 180, 40, 240)])
def test_the_thing_itself_stays_as_it_is(box: Any) -> None:
    """A label changes no pixel inside its thing, and the picture grows only to the right, if there is no
    room."""
    image = Image.effect_noise(SIZE, 60).convert("RGB")
    one = Detections(detections=[Detection(label="a label of some length", box=box, score=0.5)])
    drawn = one.draw(image)
    inside = (box[0] + 6, box[1] + 6, box[2] - 6, box[3] - 6)
    assert ImageChops.difference(image.crop(inside), drawn.crop(inside)).getbbox() is None
    assert drawn.height == SIZE[1]
    assert (drawn.width > SIZE[0]) == (box == (0, 0, 320, 240))


def test_labels_of_a_full_page_stand_beside_it() -> None:
    """Labels of adjacent lines of text do not cover the lines."""
    image = Image.effect_noise(SIZE, 60).convert("RGB")
    lines = [(4.0, 4.0 + 24 * n, 316, 4.0 + 24 * n, 316, 24.0 + 24 * n, 4, 24.0 + 24 * n) for n in range(9)]
    drawn = OcrRegions(regions=[OcrRegion(text=f"line {n}", quad=q) for n, q in enumerate(lines)]).draw(image)  # type: ignore[arg-type]
    for left, top, *_ in lines:
        inside = (int(left) + 6, int(top) + 6, 300, int(top) + 14)
        assert ImageChops.difference(image.crop(inside), drawn.crop(inside)).getbbox() is None


def test_a_mask_covers_the_inside_as_much_as_it_is_told() -> None:
    """A mask has the given opacity inside and changes nothing outside."""
    image = Image.new("RGB", SIZE, (0, 0, 0))
    for opacity in (0.0, 0.25, 0.5, 1.0):
        drawn = LEAF.draw(image, opacity=opacity, colours={"leaf": (200, 100, 40)})
        assert drawn.getpixel(OUTSIDE) == (0, 0, 0)
        expected = [opacity * part for part in (200, 100, 40)]
        assert drawn.getpixel(INSIDE) == pytest.approx(expected, abs=2)
    plain = LEAF.draw(image).getpixel(INSIDE)
    assert isinstance(plain, tuple)
    assert max(plain) > 80  # it is visible by default


@pytest.mark.parametrize("colour", ["#c80a1e", "rgb(200, 10, 30)", (200, 10, 30)])
def test_colours_are_taken_by_label(colour: Any) -> None:
    """A label has its given colour; others get unused colours of the palette."""
    drawn = boxes("car", "tree").draw(Image.new("RGB", SIZE), colours={"car": colour, "dog": PALETTE[0]})
    assert (200, 10, 30) in colours_of(drawn)
    assert PALETTE[1] in colours_of(drawn)
    assert PALETTE[0] not in colours_of(drawn)


def test_words_and_unnamed_things_have_their_colours_too() -> None:
    """Words use the colour of "text" and things without a label that of "object", if given."""
    words = OcrRegions(regions=[OcrRegion(text="EXIT", quad=(20, 40, 90, 40, 90, 60, 20, 60))])
    image = Image.new("RGB", SIZE)
    assert (255, 0, 0) in colours_of(words.draw(image, colours={"text": "red", "EXIT": "blue"}))
    unnamed = boxes("", "")
    assert set(PALETTE[:2]) <= colours_of(unnamed.draw(image))
    assert (255, 0, 0) in colours_of(unnamed.draw(image, colours={"object": "red"}))


def test_shared_colours_keep_their_labels_over_pictures() -> None:
    """With one `Colours` for two pictures a label has the same colour in both."""
    shared, image = Colours(), Image.new("RGB", SIZE)
    boxes("car", "tree").draw(image, colours=shared)
    drawn = boxes("dog", "tree").draw(image, colours=shared)
    assert shared == {"car": PALETTE[0], "tree": PALETTE[1], "dog": PALETTE[2]}
    assert {PALETTE[1], PALETTE[2]} <= colours_of(drawn)
    assert PALETTE[0] not in colours_of(drawn)


def test_an_overlay_on_the_picture_is_the_drawing() -> None:
    """An overlay is transparent RGBA of the picture's size, and laid over the picture it equals the
    drawing."""
    image = Image.effect_noise(SIZE, 60).convert("RGB")
    for result in (boxes("car", "tree"), LEAF):
        layer = result.draw(image, overlay=True)
        assert (layer.mode, layer.size) == ("RGBA", SIZE)
        assert layer.getpixel(OUTSIDE) == (0, 0, 0, 0)
        laid = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
        assert np.asarray(ImageChops.difference(laid, result.draw(image))).max() <= 1
    full = Detections(detections=[Detection(label="sky", box=(0, 0, 320, 240))]).draw(image, overlay=True)
    assert full.size == SIZE
    assert Detections(detections=[]).draw(image, overlay=True).getbbox() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"colours": {"car": "reddish"}}, "'reddish' is not a colour"),
        ({"colours": {"car": (1, 2)}}, "is not a colour"),
        ({"colours": {"car": (1, 2, 256)}}, "is not a colour"),
        ({"colours": {"other": 5}}, "is not a colour"),
        ({"opacity": 1.5}, "from 0 to 1"),
        ({"opacity": float("nan")}, "from 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    """A wrong colour or opacity is refused."""
    with pytest.raises(RequestError, match=message):
        boxes("car").draw(Image.new("RGB", SIZE), **wrong)


def test_a_text_has_no_overlay() -> None:
    """An overlay of a text is refused."""
    with pytest.raises(RequestError, match="without overlay"):
        Text(text="a car").draw(Image.new("RGB", SIZE), overlay=True)
