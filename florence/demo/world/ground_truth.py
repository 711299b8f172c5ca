"""The ground truth: for a scene and each of the fifteen tasks, questions with answers in Florence-2's format.

Things are always named from left to right. Knows nothing about pixels, tokens or prompts.

No answer may repeat an n-gram of three tokens, since the checkpoint's no_repeat_ngram_size of 3 forbids it.
`is_answerable` checks a scene for that; other scenes are drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from florence.demo.world.scenes import Scene, Thing
from florence.demo.world.shapes import Points
from florence.demo.world.vocabulary import COLOURS, NUMBERS, SHAPES, SIZES, WORD, WORDS
from florence.export.geometry import Box
from florence.types.regions import BINS

_JITTER: Final = 6  # most bins by which a question's region may differ from the true box
_NEAR: Final = 0.05  # of the width or height: closer things are neither left nor right, above nor below
_SIDES: Final = (("left of", "right of"), ("above", "below"))
_PIECE = re.compile(r"<[^<>]+>|\w+|[^\w\s]")
_ZONES: Final = (("On the left", 0.0, 1 / 3), ("In the middle", 1 / 3, 2 / 3), ("To the right", 2 / 3, 1.0))


@dataclass(frozen=True, slots=True)
class Question:
    """One task on a scene: its token, its text or region (as `<loc_n>`), the right answer."""

    task: str
    text: str | None
    answer: str
    things: tuple[int, ...] = ()  # indices of the scene's things in the answer, in its order


def location(value: float, length: int) -> str:
    """The location token of a coordinate in pixels, by the original's quantizer: floor of the bin, 0 to
    999."""
    return f"<loc_{min(max(int(value / (length / BINS)), 0), BINS - 1)}>"


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question for each task that suits the scene (tasks about text need a word)."""
    return [Question(task, *asked) for task, ask in _ASK.items() if (asked := ask(scene, rng)) is not None]


def is_answerable(scene: Scene) -> bool:
    """Whether no answer about the whole scene repeats a run of three tokens."""
    if not scene.things:
        return False
    whole = (caption(scene), detailed_caption(scene), more_detailed_caption(scene))
    return not any(_repeats(text) for text in whole)


def caption(scene: Scene) -> str:
    """`a red star, blue ring and word OPEN`"""
    return _with_article(_listing([brief(thing) for thing in scene.things]))


def detailed_caption(scene: Scene) -> str:
    """The caption with sizes and the background."""
    things = _with_article(_listing([full(thing) for thing in scene.things]))
    return f"The image shows {things} on a {_background(scene)}."


def more_detailed_caption(scene: Scene) -> str:
    """The number of things, the background, and the things at the left, in the middle and at the right."""
    count = len(scene.things)
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    noun = "object" if count == 1 else "objects"
    parts = [f"The image shows {number} {noun} on a {_background(scene)}."]
    for place, start, stop in _ZONES:
        here = [full(thing) for thing in scene.things if start <= thing.centre[0] / scene.width < stop]
        if here:
            parts.append(f"{place}: {_listing(here)}.")
    return " ".join(parts)


def brief(thing: Thing) -> str:
    """Colour and shape, or the word itself."""
    return f"word {thing.text}" if thing.text else f"{thing.colour} {thing.shape}"


def full(thing: Thing) -> str:
    """A thing's full description."""
    return f"{thing.colour} word {thing.text}" if thing.text else f"{thing.size} {thing.colour} {thing.shape}"


def box_text(box: Box, scene: Scene) -> str:
    """A box as four locations."""
    return polygon_text(np.reshape(box, (2, 2)), scene)


def polygon_text(points: Points, scene: Scene) -> str:
    """A polygon as two locations for each vertex."""
    return "".join(location(x, scene.width) + location(y, scene.height) for x, y in points.tolist())


def _background(scene: Scene) -> str:
    return f"{scene.tone} {scene.texture} background"


def _listing(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _repeats(text: str) -> bool:
    pieces = _PIECE.findall(text)
    runs = list(zip(pieces, pieces[1:], pieces[2:], strict=False))
    return len(set(runs)) < len(runs)


_Asked = tuple[str | None, str, tuple[int, ...]]
_Ask = Callable[[Scene, np.random.Generator], _Asked | None]


def _all(scene: Scene) -> tuple[int, ...]:
    return tuple(range(len(scene.things)))


def _whole_text(text: Callable[[Scene], str]) -> _Ask:
    return lambda scene, rng: (None, text(scene), _all(scene))


def _boxes(label: Callable[[Thing], str]) -> _Ask:
    def ask(scene: Scene, rng: np.random.Generator) -> _Asked:
        return None, "".join(label(thing) + box_text(thing.box, scene) for thing in scene.things), _all(scene)

    return ask


def _words(scene: Scene) -> tuple[int, ...]:
    return tuple(index for index, thing in enumerate(scene.things) if thing.text)


def _read(between: str, place: Callable[[Thing, Scene], str]) -> _Ask:
    def ask(scene: Scene, rng: np.random.Generator) -> _Asked | None:
        chosen = _words(scene)
        pieces = [scene.things[index].text + place(scene.things[index], scene) for index in chosen]
        return (None, between.join(pieces), chosen) if chosen else None

    return ask


def _outline(thing: Thing, scene: Scene) -> str:
    return polygon_text(thing.polygon, scene)


def _grounding(scene: Scene, rng: np.random.Generator) -> _Asked:
    """A caption of one to three things in random order, and the phrases with their boxes in that order."""
    count = int(rng.integers(1, min(3, len(scene.things)) + 1))
    chosen = tuple(int(index) for index in rng.permutation(len(scene.things))[:count])
    phrases = [(full if rng.random() < 0.5 else brief)(scene.things[index]) for index in chosen]
    boxes = [box_text(scene.things[index].box, scene) for index in chosen]
    answer = "".join(phrase + box for phrase, box in zip(phrases, boxes, strict=True))
    return _listing([_with_article(phrase) for phrase in phrases]), answer, chosen


def _referring(scene: Scene, rng: np.random.Generator) -> _Asked:
    """The polygon of one thing, identified by its attributes or by a neighbour."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    phrase = (full if rng.random() < 0.5 else brief)(thing)
    relation = _relation(scene, index, rng)
    if relation is not None and rng.random() < 0.4:
        phrase = relation
    return f"the {phrase}", _outline(thing, scene), (index,)


def _relation(scene: Scene, index: int, rng: np.random.Generator) -> str | None:
    """`small red star left of the word OPEN`, if only one star is there; None if that is ambiguous."""
    thing = scene.things[index]
    others = [other for place, other in enumerate(scene.things) if place != index]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    axis = int(rng.integers(2))  # horizontal or vertical
    side = 1 if thing.centre[axis] > other.centre[axis] else -1
    near = _NEAR * (scene.width, scene.height)[axis]
    same = [one for one in others if one.shape == thing.shape and one is not other]
    clear = abs(thing.centre[axis] - other.centre[axis]) > near
    if not clear or any(side * (one.centre[axis] - other.centre[axis]) > -near for one in same):
        return None
    where = _SIDES[axis][side > 0]
    first = (thing.shape, thing.shape, brief(thing), full(thing))[int(rng.integers(4))]
    return f"{first} {where} the {(full if rng.random() < 0.3 else brief)(other)}"


def _open_vocabulary(scene: Scene, rng: np.random.Generator) -> _Asked:
    """The boxes of what a phrase names: one thing, all things of a shape, or nothing (an empty answer)."""
    lot = rng.random()
    if lot < 0.3:
        return _absent(scene, rng), "", ()
    place = int(rng.integers(len(scene.things)))
    first = scene.things[place]
    if lot < 0.55:
        chosen = tuple(index for index, thing in enumerate(scene.things) if thing.shape == first.shape)
        phrase = first.shape
    else:
        phrase = (full if rng.random() < 0.5 else brief)(first)
        chosen = (place,)
    return phrase, "".join(phrase + box_text(scene.things[index].box, scene) for index in chosen), chosen


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A phrase for something absent: a shape, a shape of a colour, a word, or a thing of the other size."""
    present = {name for thing in scene.things for name in (thing.shape, brief(thing), full(thing))}
    while True:
        colour, size = rng.choice(list(COLOURS)), rng.choice(list(SIZES))
        shape, thing = rng.choice((*SHAPES, WORD)), scene.things[int(rng.integers(len(scene.things)))]
        other_size = f"{size} {thing.colour} {thing.shape}"  # words have no size
        names = (str(shape), f"{colour} {shape}", f"{WORD} {rng.choice(WORDS)}", other_size)
        name = names[int(rng.choice(4, p=(0.3, 0.4, 0.15, 0.15)))]
        if name not in present and not (name == other_size and thing.text):
            return name


def _region(answer: Callable[[Thing, Scene], str], words_only: bool = False) -> _Ask:
    def ask(scene: Scene, rng: np.random.Generator) -> _Asked | None:
        chosen = _words(scene) if words_only else _all(scene)
        if not chosen:
            return None
        index = chosen[int(rng.integers(len(chosen)))]
        thing = scene.things[index]
        return _loose_box(thing.box, scene, rng), answer(thing, scene), (index,)

    return ask


def _loose_box(box: Box, scene: Scene, rng: np.random.Generator) -> str:
    shift = rng.integers(-_JITTER, _JITTER + 1, 4) / BINS * np.array([scene.width, scene.height] * 2)
    x1, y1, x2, y2 = (np.array(box) + shift).tolist()
    return box_text((x1, y1, x2, y2), scene)


_ASK: Final[dict[str, _Ask]] = {
    "<CAPTION>": _whole_text(caption),
    "<DETAILED_CAPTION>": _whole_text(detailed_caption),
    "<MORE_DETAILED_CAPTION>": _whole_text(more_detailed_caption),
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<OD>": _boxes(lambda thing: thing.shape),
    "<DENSE_REGION_CAPTION>": _boxes(full),
    "<REGION_PROPOSAL>": _boxes(lambda thing: ""),
    "<OCR>": _read(" ", lambda thing, scene: ""),
    "<OCR_WITH_REGION>": _read("", _outline),
    "<REFERRING_EXPRESSION_SEGMENTATION>": _referring,
    "<REGION_TO_SEGMENTATION>": _region(_outline),
    "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
    "<REGION_TO_CATEGORY>": _region(lambda thing, scene: thing.shape),
    "<REGION_TO_DESCRIPTION>": _region(lambda thing, scene: full(thing)),
    "<REGION_TO_OCR>": _region(lambda thing, scene: thing.text, words_only=True),
}
