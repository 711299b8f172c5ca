"""Draws marks on a picture so that they can be read on any background.

Every line has a dark casing, every label a plate of its mark's colour; sizes follow the picture's. The same
label has the same colour. Plates keep clear of each other where there is room.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from florence.errors import ImageError
from florence.export.annotation import Mark
from florence.images.decode import load_image

Rgb = tuple[int, int, int]
Place = tuple[float, float, float, float]  # left, top, right, bottom
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLOURS: Final[tuple[Rgb, ...]] = (
    (255, 214, 10), (10, 190, 255), (255, 70, 85), (90, 220, 90), (255, 120, 240),
    (255, 145, 30), (120, 120, 255), (0, 225, 190), (200, 235, 60), (205, 150, 100),
)  # fmt: skip
DARK: Final[Rgb] = (16, 16, 16)
LIGHT: Final[Rgb] = (255, 255, 255)
_TINT: Final = 70  # of 255: how much of an area's colour covers it


def draw_marks(
    image: Image.Image | bytes | str | os.PathLike[str],
    marks: Sequence[Mark],
    caption: str,
    font_path: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """A new RGB picture. Marks are cut at its edges; a caption makes it higher by a strip."""
    picture = load_image(image).copy()
    scale = math.sqrt(picture.width * picture.height)
    font = _font(font_path, max(12, round(scale / 36)))
    line = max(2, round(scale / 280))
    colours = _colours(marks)
    picture = _tint_areas(picture, marks, colours)
    pen = ImageDraw.Draw(picture)
    for mark, colour in zip(marks, colours, strict=True):
        for outline in mark.outlines:
            _draw_outline(pen, outline, colour, line, picture.size)
    taken: list[Place] = []
    for mark, colour in zip(marks, colours, strict=True):
        place = _draw_plate(picture, mark, colour, font, taken)
        if place is not None:
            taken.append(place)
    return _add_caption(picture, caption, font) if caption else picture


def _font(path: str | os.PathLike[str] | None, size: int) -> Font:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(os.fspath(path), size)
    except OSError as error:
        raise ImageError(f"the font {os.fspath(path)!r} can't be read: {error}") from error


def _colours(marks: Sequence[Mark]) -> list[Rgb]:
    """One for each category; without any, one after the other."""
    names: dict[object, int] = {}
    for number, mark in enumerate(marks):
        names.setdefault(mark.category or mark.label or number, len(names))
    return [
        COLOURS[names[mark.category or mark.label or number] % len(COLOURS)]
        for number, mark in enumerate(marks)
    ]


def _tint_areas(picture: Image.Image, marks: Sequence[Mark], colours: Sequence[Rgb]) -> Image.Image:
    if not any(mark.shape == "area" for mark in marks):
        return picture
    for mark, colour in zip(marks, colours, strict=True):
        if mark.shape == "area":
            mask = Image.new("L", picture.size)
            pen = ImageDraw.Draw(mask)
            for outline in mark.outlines:
                pen.polygon(_points(outline, picture.size), fill=_TINT)
            picture.paste(colour, (0, 0), mask)
    return picture


def _draw_outline(
    pen: ImageDraw.ImageDraw, outline: Sequence[float], colour: Rgb, line: int, size: tuple[int, int]
) -> None:
    points = _points(outline, size)
    closed = [*points, *points[:2]]  # the second point again, so that the last corner is joined too
    pen.line(closed, fill=DARK, width=line + 2 * max(1, line // 2), joint="curve")
    pen.line(closed, fill=colour, width=line, joint="curve")


def _points(outline: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Within the picture: the line of a box that ends at its edge is seen."""
    return [
        (min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1))
        for x, y in zip(outline[0::2], outline[1::2], strict=True)
    ]


def _words(mark: Mark) -> str:
    score = "" if mark.score is None else f"{mark.score:.2f}"
    return " ".join(part for part in (" ".join(mark.label.split()), score) if part)


def _fit(words: str, font: Font, width: int) -> str:
    """The words, cut in their middle where the picture is narrower: the score stays."""
    if font.getlength(words) <= width * 0.9:
        return words
    for kept in range(len(words) - 1, 1, -1):
        shorter = words[: kept - kept // 3] + "…" + words[len(words) - kept // 3 :]
        if font.getlength(shorter) <= width * 0.9:
            return shorter
    return words[:1]


def _draw_plate(
    picture: Image.Image, mark: Mark, colour: Rgb, font: Font, taken: Sequence[Place]
) -> Place | None:
    """Draw label and score on a plate near the mark, clear of the plates before if that can be; its place.
    None where there is nothing to say."""
    words = _fit(_words(mark), font, picture.width)
    if not words:
        return None
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    pad = max(2, round((bottom - top) / 5))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    places = _places(mark, width, height, picture.size)
    place = min(places, key=lambda each: sum(_overlap(each, other) for other in taken))
    pen.rectangle(place, fill=colour, outline=DARK)
    ink = DARK if _brightness(colour) > 110 else LIGHT
    pen.text((place[0] + pad - left, place[1] + pad - top), words, fill=ink, font=font)
    return place


def _places(mark: Mark, width: float, height: float, size: tuple[int, int]) -> list[Place]:
    """Where a plate may go, best first: above the mark, in its top, below it, in its bottom; at each side."""
    left, top, right, bottom = mark.bounds
    found: list[Place] = []
    for y in (top - height, top, bottom, bottom - height, top + height, top - 2 * height):
        for x in (left, right - width):
            inside_x = min(max(x, 0), max(size[0] - 1 - width, 0))
            inside_y = min(max(y, 0), max(size[1] - 1 - height, 0))
            found.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return found


def _overlap(one: Place, other: Place) -> float:
    """Square pixels that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _brightness(colour: Rgb) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


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
    """Lines that are no wider, broken between words, and within a word only where it is wider itself."""
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
