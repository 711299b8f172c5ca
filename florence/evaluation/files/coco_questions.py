"""Makes questions about the pictures of a COCO file, with the true answers.

Knows nothing about models, and about tasks only whether their boxes have labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence.errors import RequestError
from florence.evaluation.files.coco_file import CocoAnnotation, CocoImage, CocoTruth
from florence.evaluation.files.examples import Example, TrueThing, Truth
from florence.export.geometry import Box, meet


@dataclass(frozen=True, slots=True)
class CocoQuestions:
    """Makes the questions of a file. `images`: the directory of its pictures. `all_classes`: whether open
    vocabulary asks for every class of the file in each picture, instead of only those that are known to be
    present or absent."""

    truth: CocoTruth
    images: Path
    all_classes: bool = False

    def captions(self) -> Iterator[Example]:
        """A question for each picture with captions; each caption is right."""
        for image in self.truth.images:
            texts = [self.truth.need(*each, "caption") for each in self.truth.of(image)]
            if texts:
                yield self._example(image, Truth(texts=tuple(texts)))

    def classes(self) -> Iterator[Example]:
        """A question for each picture: its things, labelled by class."""
        yield from self._boxes(self.truth.category)

    def phrases(self) -> Iterator[Example]:
        """A question for each picture: its things, labelled by phrase."""
        yield from self._boxes(lambda number, one: str(self.truth.need(number, one, "phrase")))

    def unlabelled(self) -> Iterator[Example]:
        """A question for each picture: its things, without labels."""
        yield from self._boxes(lambda number, one: "")

    def by_class(self) -> Iterator[Example]:
        """A question for each picture and class: the things of that class."""
        names = self.truth.categories
        for image in self.truth.images:
            things: dict[int | str, list[TrueThing]] = {}
            for number, one in self.truth.of(image):
                label = self.truth.category(number, one)
                things.setdefault(one.category_id or 0, []).append(self._thing(number, one, label))
            absent = names if self.all_classes else self._known_absent(image)
            for category in dict.fromkeys([*things, *absent]):
                yield self._example(image, Truth(tuple(things.get(category, ()))), names[category])

    def regions(self) -> Iterator[Example]:
        """A question for each annotation with an outline: the outline of what is in its region or box."""
        for image in self.truth.images:
            for number, one in self.truth.of(image):
                if not one.iscrowd:
                    self.truth.need(number, one, "segmentation")
                    label = "" if one.category_id is None else self.truth.category(number, one)
                    thing = self._thing(number, one, label)
                    asked = thing.box if one.region is None else _corners(one.region)
                    region = ", ".join(f"{value:.6g}" for value in _inside(asked, image.size))
                    yield self._example(image, Truth((thing,)), region)

    def grounding(self) -> Iterator[Example]:
        """A question for each picture with phrases: its caption (or the phrases in order), and the phrases'
        boxes."""
        for image in self.truth.images:
            phrases = [
                self._thing(*each, str(self.truth.need(*each, "phrase"))) for each in self.truth.of(image)
            ]
            if phrases:
                caption = image.caption or ", ".join(dict.fromkeys(one.label for one in phrases))
                yield self._example(image, Truth(tuple(phrases)), caption)

    def expressions(self, *, outlined: bool) -> Iterator[Example]:
        """A question for each annotation: the thing that its phrase refers to. `outlined`: whether an outline
        is required."""
        for image in self.truth.images:
            for number, one in self.truth.of(image):
                if outlined:
                    self.truth.need(number, one, "segmentation")
                phrase = str(self.truth.need(number, one, "phrase"))
                yield self._example(image, Truth((self._thing(number, one, phrase),)), phrase)

    def writing(self) -> Iterator[Example]:
        """A question for each picture with text: the pieces of text in the file's order, and their boxes."""
        for image in self.truth.images:
            pieces = [
                self._thing(number, one, one.text)
                for number, one in self.truth.of(image)
                if one.text is not None and one.text.strip()
            ]
            if pieces:
                text = " ".join(one.label for one in pieces)
                yield self._example(image, Truth(tuple(pieces), texts=(text,)))

    def _boxes(self, label: Callable[[int, CocoAnnotation], str]) -> Iterator[Example]:
        for image in self.truth.images:
            things = [self._thing(number, one, label(number, one)) for number, one in self.truth.of(image)]
            yield self._example(image, Truth(tuple(things)))

    def _thing(self, number: int, one: CocoAnnotation, label: str) -> TrueThing:
        box = _corners(self.truth.need(number, one, "bbox"))
        return TrueThing(label, box, one.segmentation, crowd=bool(one.iscrowd))

    def _known_absent(self, image: CocoImage) -> Sequence[int | str]:
        for category in image.neg_category_ids:
            if category not in self.truth.categories:
                raise RequestError(
                    f"{self.truth.path}: images: {image.file_name!r} has the unknown id {category!r} in its "
                    "neg_category_ids"
                )
        return image.neg_category_ids

    def _example(self, image: CocoImage, truth: Truth, text: str | None = None) -> Example:
        return Example(image.file_name, self.images / image.file_name, truth, text, image.size)


def _corners(box: tuple[float, float, float, float]) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height


def _inside(box: Box, size: tuple[int, int] | None) -> Box:
    """The box, clipped to the picture: rounding and careless annotations exceed it."""
    if size is None:
        return box
    return meet(box, (0.0, 0.0, float(size[0]), float(size[1])))
