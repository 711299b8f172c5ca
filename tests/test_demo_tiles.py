"""With tiles the demo checkpoint finds small print and crowds that it misses in the whole picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from florence import Florence2
from florence.demo.evaluation.tiles import Findings, tally
from florence.demo.world.drawing import draw_scene
from florence.demo.world.pages import LETTERS, MAX_WORD_WIDTH, make_page
from florence.demo.world.scenes import Limits, Scene, Split, Thing, make_scene, scene_rng
from florence.demo.world.typeface import FACES, Typeface
from florence.demo.world.vocabulary import WORDS

pytestmark = pytest.mark.slow

CROWD = Limits((40, 40), word_share=0.5, side=(1250, 1250), aspect=1.5, scale=0.26)


@pytest.fixture(scope="module")
def model() -> Iterator[Florence2]:
    """The demo checkpoint."""
    with Florence2.load("demo", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def typeface() -> Typeface:
    """The demo world's typeface."""
    return Typeface()


@pytest.fixture(scope="module")
def page(typeface: Typeface) -> tuple[Scene, Image.Image]:
    """A page of small print, and its picture."""
    scene = make_page(scene_rng(Split.HELD_OUT, 53, 0), typeface)
    return scene, draw_scene(scene, typeface)


def word(thing: Thing) -> str:
    """The text of a thing."""
    return thing.text


def test_a_page_has_60_words_of_small_print(page: tuple[Scene, Image.Image], typeface: Typeface) -> None:
    """A page has 60 words, 24 to 40 pixels high, and the widest possible word is
    `MAX_WORD_WIDTH` pixels wide."""
    scene, picture = page
    boxes = np.array([thing.box for thing in scene.things])
    heights = boxes[:, 3] - boxes[:, 1]
    assert len(scene.things) == 60
    assert picture.size == (scene.width, scene.height)
    assert LETTERS[0] <= heights.min() <= heights.max() <= LETTERS[1] + 2
    largest = [
        next(ink for size in range(12, 99) if (ink := typeface.ink(text, face, size)).height >= LETTERS[1])
        for face in FACES
        for text in WORDS
    ]
    assert max(ink.width for ink in largest) == MAX_WORD_WIDTH


def test_the_words_of_a_page_are_read_in_tiles(model: Florence2, page: tuple[Scene, Image.Image]) -> None:
    """With `auto`, at least 90% of the words are found and 90% of these are right, none twice; without tiles,
    under 10% are right."""
    scene, picture = page
    cut = model.run(picture, "<OCR_WITH_REGION>", tiles="auto")
    found = tally(scene, cut.result, word)
    assert found.found >= 0.9 * found.things
    assert found.right >= 0.9 * found.found
    assert found.twice == 0
    off = tally(scene, model.run(picture, "<OCR_WITH_REGION>").result, word)
    assert off.right < 0.1 * off.things


def test_crowds_are_found_in_tiles(model: Florence2, typeface: Typeface) -> None:
    """With `auto`, recall and precision of the boxes in three crowded scenes (IoU 0.5 and label) are at least
    0.85, without duplicates."""
    found = Findings()
    for index in range(3):
        scene = make_scene(scene_rng(Split.HELD_OUT, 53, index), typeface, CROWD)
        cut = model.run(draw_scene(scene, typeface), "<OD>", tiles="auto")
        found += tally(scene, cut.result, lambda thing: thing.shape)
    assert found.things >= 3 * 36
    assert found.right >= 0.85 * found.things
    assert found.right >= 0.85 * found.items
    assert found.twice == 0
