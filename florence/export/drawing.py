"""Draws annotations on a picture so that they can be read on any background.

Every line has a dark casing, every label a plate in the colour of its annotation; sizes follow the picture's.
The same label has the same colour. Plates keep clear of each other where there is room.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from florence.errors import ImageError
from florence.export.annotation import Annotation
from florence.images.decode import load_image
from florence.images.seen import SEEN

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE: Final[tuple[Colour, ...]] = (
    (255, 214, 10), (10, 190, 255), (255, 70, 85), (90, 220, 90), (255, 120, 240),
    (255, 145, 30), (120, 120, 255), (0, 225, 190), (200, 235, 60), (205, 150, 100),
)  # fmt: skip
DARK: Final[Colour] = (16, 16, 16)
LIGHT: Final[Colour] = (255, 255, 255)
_TINT: Final = 70  # of 255: how much of an area's colour covers it


def draw_annotations(
    image: Image.Image | bytes | str | os.PathLike[str],
    annotations: Sequence[Annotation],
    caption: str,
    font_path: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """A new RGB picture. Annotations are cut at its edges; a caption makes it higher by a strip."""
    picture = load_image(image, view=SEEN).copy()
    scale = math.sqrt(picture.width * picture.height)
    font = _font(font_path, max(12, round(scale / 36)))
    line = max(2, round(scale / 280))
    coloured = list(zip(annotations, _colours(annotations), strict=True))
    for annotation, colour in coloured:
        if annotation.shape == "area":
            _tint(picture, annotation, colour)
    pen = ImageDraw.Draw(picture)
    for annotation, colour in coloured:
        for polygon in annotation.polygons:
            _draw_polygon(pen, polygon, colour, line, picture.size)
    taken: list[Rectangle] = []
    for annotation, colour in coloured:
        _draw_plate(picture, annotation, colour, font, taken)
    return _add_caption(picture, caption, font) if caption else picture


def _font(path: str | os.PathLike[str] | None, size: int) -> Font:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(os.fspath(path), size)
    except OSError as error:
        raise ImageError(f"the font {os.fspath(path)!r} can't be read: {error}") from error


def _colours(annotations: Sequence[Annotation]) -> list[Colour]:
    """One colour for each category; without categories, one after the other."""
    names = [each.category or each.label or number for number, each in enumerate(annotations)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [PALETTE[numbers[name] % len(PALETTE)] for name in names]


def _tint(picture: Image.Image, annotation: Annotation, colour: Colour) -> None:
    mask = Image.new("L", picture.size)
    pen = ImageDraw.Draw(mask)
    for polygon in annotation.polygons:
        pen.polygon(_points(polygon, picture.size), fill=_TINT)
    picture.paste(colour, (0, 0), mask)


def _draw_polygon(
    pen: ImageDraw.ImageDraw, polygon: Sequence[float], colour: Colour, line: int, size: tuple[int, int]
) -> None:
    points = _points(polygon, size)
    closed = [*points, *points[:2]]  # the second point again, so that the last corner is joined as well
    pen.line(closed, fill=DARK, width=line + 2 * max(1, line // 2), joint="curve")
    pen.line(closed, fill=colour, width=line, joint="curve")


def _points(polygon: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Clipped to the picture, so that the line of a box at its edge is visible."""
    return [
        (min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1))
        for x, y in zip(polygon[0::2], polygon[1::2], strict=True)
    ]


def _fit(words: str, font: Font, width: int) -> str:
    """The words, cut in the middle where the picture is too narrow, so that the score stays."""
    if font.getlength(words) <= width * 0.9:
        return words
    for kept in range(len(words) - 1, 1, -1):
        shorter = words[: kept - kept // 3] + "…" + words[len(words) - kept // 3 :]
        if font.getlength(shorter) <= width * 0.9:
            return shorter
    return words[:1]


def _draw_plate(
    picture: Image.Image, annotation: Annotation, colour: Colour, font: Font, taken: list[Rectangle]
) -> None:
    """Draw label and score, if any, on a plate near the annotation, clear of those in `taken` if possible;
    its place is added there."""
    score = "" if annotation.score is None else f"{annotation.score:.2f}"
    words = _fit(" ".join([*annotation.label.split(), score]).strip(), font, picture.width)
    if not words:
        return
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    pad = max(2, round((bottom - top) / 5))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    places = _places(annotation, width, height, picture.size)
    place = min(places, key=lambda each: sum(_overlap(each, other) for other in taken))
    pen.rectangle(place, fill=colour, outline=DARK)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = DARK if brightness > 110 else LIGHT
    pen.text((place[0] + pad - left, place[1] + pad - top), words, fill=ink, font=font)
    taken.append(place)


def _places(annotation: Annotation, width: float, height: float, size: tuple[int, int]) -> list[Rectangle]:
    """Where a plate may go, best first: above the annotation, in its top, below it, in its bottom; left and
    right."""
    left, top, right, bottom = annotation.bounds
    found: list[Rectangle] = []
    for y in (top - height, top, bottom, bottom - height, top + height, top - 2 * height):
        for x in (left, right - width):
            inside_x = min(max(x, 0), max(size[0] - 1 - width, 0))
            inside_y = min(max(y, 0), max(size[1] - 1 - height, 0))
            found.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return found


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that both cover, in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _add_caption(picture: Image.Image, caption: str, font: Font) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    text = "\n".join(_wrap(caption, font, picture.width * 0.94))
    _, _, _, bottom = pen.multiline_textbbox((0, 0), text, font=font)
    pad = round(picture.width * 0.03)
    higher = Image.new("RGB", (picture.width, picture.height + math.ceil(bottom) + 2 * pad), LIGHT)
    higher.paste(picture, (0, 0))
    ImageDraw.Draw(higher).multiline_text((pad, picture.height + pad), text, fill=DARK, font=font)
    return higher


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines of at most that width, broken between words, and within a word only if it is too wide itself."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
