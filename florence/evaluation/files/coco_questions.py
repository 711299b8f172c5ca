"""What to ask about the pictures of a COCO file, and what is true of them.

Knows nothing about models; which task a question goes to is not its business, but for whether boxes have
labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence.errors import RequestError
from florence.evaluation.files.coco_file import CocoAnnotation, CocoImage, CocoTruth
from florence.evaluation.files.examples import Example, TrueThing, Truth
from florence.types.results import Box


@dataclass(frozen=True, slots=True)
class CocoQuestions:
    """Makes questions of a file. images: the directory of its pictures. all_classes: whether open vocabulary
    asks for every class of the file in each picture, in place of those that are in it or known not to be."""

    truth: CocoTruth
    images: Path
    all_classes: bool = False

    def captions(self) -> Iterator[Example]:
        """Each picture that has captions: each of them is right."""
        for image in self.truth.images:
            texts = [self.truth.need(*each, "caption") for each in self.truth.of(image)]
            if texts:
                yield self._example(image, Truth(texts=tuple(texts)))

    def classes(self) -> Iterator[Example]:
        """Each picture: its things, by their class."""
        yield from self._boxes(self.truth.category)

    def phrases(self) -> Iterator[Example]:
        """Each picture: its things, by their phrase."""
        yield from self._boxes(lambda number, one: str(self.truth.need(number, one, "phrase")))

    def unlabelled(self) -> Iterator[Example]:
        """Each picture: its things, which have no labels."""
        yield from self._boxes(lambda number, one: "")

    def by_class(self) -> Iterator[Example]:
        """Each picture and class: the things of that class."""
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
        """Each annotation with an outline: what its region, or its box, outlines."""
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
        """Each picture with phrases: its caption (or the phrases in their order), and where they are."""
        for image in self.truth.images:
            phrases = [
                self._thing(*each, str(self.truth.need(*each, "phrase"))) for each in self.truth.of(image)
            ]
            if phrases:
                caption = image.caption or ", ".join(dict.fromkeys(one.label for one in phrases))
                yield self._example(image, Truth(tuple(phrases)), caption)

    def expressions(self, *, outlined: bool) -> Iterator[Example]:
        """Each annotation: the thing that its phrase refers to. outlined: whether its outline is needed."""
        for image in self.truth.images:
            for number, one in self.truth.of(image):
                if outlined:
                    self.truth.need(number, one, "segmentation")
                phrase = str(self.truth.need(number, one, "phrase"))
                yield self._example(image, Truth((self._thing(number, one, phrase),)), phrase)

    def writing(self) -> Iterator[Example]:
        """Each picture with text in it: the pieces of text, in the file's order, and where they stand."""
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
    """The box without what lies beyond the picture, by a rounding or a careless annotation."""
    if size is None:
        return box
    x1, y1, x2, y2 = box
    width, height = size
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
