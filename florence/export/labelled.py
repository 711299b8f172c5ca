"""Collects everything that all tasks found in each picture, as the input for data sets.

Knows answers by their annotations and captions; knows nothing about files or formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from florence.errors import RequestError, quote
from florence.export.annotation import Annotation, Drawable
from florence.export.coco import category_name


@dataclass
class Labelled(Drawable):
    """One picture. `name`: that of its answers. `size`: width and height of the upright picture. `places`:
    all annotations. `texts`: answers in text. `models`: checkpoints that answered."""

    name: str
    size: tuple[int, int]
    places: list[Annotation] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    @property
    def pixel_size(self) -> tuple[int, int]:
        return self.size

    def annotations(self) -> list[Annotation]:
        return self.places

    def caption(self) -> str:
        return "\n".join(self.texts)


def labelled_pictures(answers: Iterable[tuple[str, Any]]) -> list[Labelled]:
    """The pictures of these (name, answer) pairs, each once, in order of appearance.

    Raises `RequestError` where two answers have different sizes for a picture.
    """
    found: dict[str, Labelled] = {}
    for name, answer in answers:
        picture = found.setdefault(name, Labelled(name, answer.pixel_size))
        if picture.size != answer.pixel_size:
            raise RequestError(
                f"{quote(name)} is of {picture.size} pixels in one answer and of {answer.pixel_size} in "
                "another: the picture has changed"
            )
        picture.places += answer.annotations()
        if text := answer.caption():
            picture.texts.append(text)
        if answer.checkpoint not in picture.models:
            picture.models.append(answer.checkpoint)
    return list(found.values())


def keep_labels(pictures: Iterable[Labelled], ids: Mapping[str, int], *, only: bool) -> Counter[str]:
    """Drop annotations whose category has no id; returns their number by label. Raises `RequestError` for
    them unless `only` is set."""
    dropped: Counter[str] = Counter()
    for picture in pictures:
        dropped.update(name for name in map(category_name, picture.places) if name not in ids)
        picture.places = [each for each in picture.places if category_name(each) in ids]
    if dropped and not only:
        names = ", ".join(quote(name, 40) for name, _ in dropped.most_common(8))
        raise RequestError(
            f"the label map lacks {len(dropped)} labels of these answers: {names}; add them, or leave them "
            "out by --only-labels"
        )
    return dropped
