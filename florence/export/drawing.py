"""Draws annotations on a picture, or on a transparent layer, so that they can be read on any background.

Every line has a dark outline, every label a plate in the colour of its annotation; sizes scale with the
picture. Equal labels have equal colours. `plates` decides where plates go. Knows nothing about tasks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageColor, ImageDraw, ImageFont

from florence.errors import ImageError, RequestError, quote
from florence.export.annotation import OPACITY, Annotation, Drawable
from florence.export.coco import UNNAMED, category_name
from florence.export.geometry import Box, Corner, corners_of
from florence.export.plates import lay_out
from florence.images.decode import load_image
from florence.images.seen import SEEN

Channels = tuple[int, int, int]  # red, green, blue
Colour = str | Channels
"""A name, "#rrggbb", or red, green and blue from 0 to 255."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE: Final[tuple[Channels, ...]] = (
    (255, 214, 10), (10, 190, 255), (255, 70, 85), (90, 220, 90), (255, 120, 240),
    (255, 145, 30), (120, 120, 255), (0, 225, 190), (200, 235, 60), (205, 150, 100),
)  # fmt: skip
DARK: Final[Channels] = (16, 16, 16)
LIGHT: Final[Channels] = (255, 255, 255)


class Colours(dict[str, Channels]):
    """Colours by label; a new label gets the next of `PALETTE`. Passed to many drawings, it keeps colours the
    same."""

    def __init__(self, known: Mapping[str, Colour] | None = None) -> None:
        """Raises `RequestError` for an invalid colour."""
        super().__init__({label: _rgb(colour) for label, colour in (known or {}).items()})

    def __missing__(self, label: str) -> Channels:
        free = [colour for colour in PALETTE if colour not in self.values()]
        self[label] = free[0] if free else PALETTE[len(self) % len(PALETTE)]
        return self[label]


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw; the fields are the arguments of `Drawable.draw`."""

    font: str | os.PathLike[str] | None = None
    colours: Mapping[str, Colour] | None = None
    opacity: float = OPACITY
    overlay: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise RequestError(f"opacity must be a number from 0 to 1, got {self.opacity}")
        if self.font is not None:
            self._font((1, 1))  # raises if the font can't be read

    def draw(
        self,
        image: Image.Image | bytes | str | os.PathLike[str],
        annotations: Sequence[Annotation],
        caption: str,
    ) -> Image.Image:
        """A new picture; see `Drawable.draw`. Annotations are clipped at its edges."""
        if self.overlay and caption:
            raise RequestError("a text has no location in the picture; draw it without overlay")
        picture = load_image(image, view=SEEN)
        layer = self._layer(annotations, picture.size)
        if self.overlay:
            return layer
        drawn = Image.new("RGB", layer.size, LIGHT)
        drawn.paste(picture, (0, 0))
        drawn.paste(layer, (0, 0), layer)
        return _add_caption(drawn, caption, self._font(picture.size)) if caption else drawn

    def _layer(self, annotations: Sequence[Annotation], size: tuple[int, int]) -> Image.Image:
        """An RGBA layer with all that is drawn; wider than the picture if labels have no room in it."""
        font, line = self._font(size, len(annotations)), max(2, round(math.sqrt(size[0] * size[1]) / 280))
        colours = self._colours(annotations)
        plates = [_plate(each, font, size[0]) for each in annotations]
        things = [_outside(each, line, size) for each in annotations]
        layout = lay_out(things, [plate.size for plate in plates], size, grow=not self.overlay)
        layer = Image.new("RGBA", layout.size)
        for annotation, colour in zip(annotations, colours, strict=True):
            if annotation.shape == "area":
                _add_mask(layer, annotation, (*colour, round(255 * self.opacity)), size)
        pen = ImageDraw.Draw(layer)
        for annotation, colour in zip(annotations, colours, strict=True):
            for polygon in annotation.polygons:
                points = _points(polygon, size)
                _draw_line(pen, [*points, *points[:2]], colour, line)  # the second again joins the corner
        for number in layout.away:
            left, top, _, bottom = layout.places[number]
            thing, middle = things[number], (top + bottom) / 2
            near = thing[2] - line, min(max(middle, thing[1] + line), thing[3] - line)
            _draw_line(pen, [(left, middle), near], colours[number], max(1, line // 2))
        for number, place in layout.places.items():
            plates[number].draw(pen, place, colours[number], font)
        return layer

    def _font(self, size: tuple[int, int], labels: int = 0) -> Font:
        crowd = max(1, math.sqrt(labels / 25))  # above this number, more labels make the font smaller
        height = max(12, round(math.sqrt(size[0] * size[1]) / (36 * crowd)))
        if self.font is None:
            return ImageFont.load_default(height)
        try:
            return ImageFont.truetype(os.fspath(self.font), height)
        except OSError as error:
            raise ImageError(f"the font {os.fspath(self.font)!r} can't be read: {error}") from error

    def _colours(self, annotations: Sequence[Annotation]) -> list[Channels]:
        """Each annotation's colour, by its category; annotations without a label get successive colours,
        unless one is given."""
        known = self.colours if isinstance(self.colours, Colours) else Colours(self.colours)
        found: list[Channels] = []
        for number, annotation in enumerate(annotations):
            name = category_name(annotation)
            unnamed = name == UNNAMED and name not in known
            found.append(PALETTE[number % len(PALETTE)] if unnamed else _rgb(known[name]))
        return found


def check_size(picture: Image.Image, answer: Drawable) -> None:
    """Raises `ImageError` where the answer is about a picture of another size."""
    if answer.pixel_size is not None and picture.size != answer.pixel_size:
        width, height = answer.pixel_size
        raise ImageError(
            f"the answer is about a picture of {width}x{height} pixels; this one has "
            f"{picture.width}x{picture.height}"
        )


def _rgb(colour: Colour) -> Channels:
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else colour
        if not all(isinstance(part, int) and 0 <= part <= 255 for part in (red, green, blue)):
            raise ValueError
    except (TypeError, ValueError):
        raise RequestError(
            f"{quote(colour)} is not a colour; write a name such as 'red', '#ff0000', or (255, 0, 0)"
        ) from None
    return red, green, blue


def _add_mask(
    layer: Image.Image, annotation: Annotation, colour: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    """Composite the inside of the annotation's polygons onto the layer."""
    left, top, right, bottom = map(round, _clipped(annotation.bounds, size))
    patch = Image.new("RGBA", (right - left + 1, bottom - top + 1))
    pen = ImageDraw.Draw(patch)
    for polygon in annotation.polygons:
        pen.polygon([(x - left, y - top) for x, y in _points(polygon, size)], fill=colour)
    layer.alpha_composite(patch, (left, top))


def _draw_line(pen: ImageDraw.ImageDraw, points: Sequence[Corner], colour: Channels, line: int) -> None:
    pen.line(points, fill=DARK, width=line + 2 * max(1, line // 2), joint="curve")
    pen.line(points, fill=colour, width=line, joint="curve")


def _outside(annotation: Annotation, line: int, size: tuple[int, int]) -> Box:
    """The rectangle around the annotation and its line."""
    left, top, right, bottom = _clipped(annotation.bounds, size)
    return left - line, top - line, right + line, bottom + line


def _clipped(bounds: Box, size: tuple[int, int]) -> Box:
    (left, top), (right, bottom) = _points(bounds, size)
    return left, top, right, bottom


def _points(polygon: Sequence[float], size: tuple[int, int]) -> list[Corner]:
    """The polygon's points, clipped to the picture so that lines at its edge are visible."""
    return [(min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)) for x, y in corners_of(polygon)]


@dataclass(frozen=True, slots=True)
class _Plate:
    """A label's plate: its text, the text's bounding box when drawn at (0, 0), and the padding around it."""

    text: str
    box: Box
    pad: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; (0, 0) without a text."""
        left, top, right, bottom = self.box
        return (math.ceil(right - left) + 2 * self.pad, math.ceil(bottom - top) + 2 * self.pad)

    def draw(self, pen: ImageDraw.ImageDraw, place: Box, colour: Channels, font: Font) -> None:
        pen.rectangle(place, fill=colour, outline=DARK)
        at = place[0] + self.pad - self.box[0], place[1] + self.pad - self.box[1]
        brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        pen.text(at, self.text, fill=DARK if brightness > 110 else LIGHT, font=font)


def _plate(annotation: Annotation, font: Font, width: int) -> _Plate:
    """The plate with label and score, if any, shortened to the picture's width."""
    score = "" if annotation.score is None else f"{annotation.score:.2f}"
    words = _fit(" ".join([*annotation.label.split(), score]).strip(), font, width)
    if not words:
        return _Plate("", (0, 0, 0, 0), 0)
    box = ImageDraw.Draw(Image.new("1", (1, 1))).textbbox((0, 0), words, font=font)
    return _Plate(words, box, max(2, round((box[3] - box[1]) / 5)))


def _fit(words: str, font: Font, width: int) -> str:
    """The words, shortened in the middle if the picture is too narrow, so that the score stays."""
    if font.getlength(words) <= width * 0.9:
        return words
    for kept in range(len(words) - 1, 1, -1):
        shorter = words[: kept - kept // 3] + "…" + words[len(words) - kept // 3 :]
        if font.getlength(shorter) <= width * 0.9:
            return shorter
    return words[:1]


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
    """The text as lines of at most this width in pixels, broken between words, and within a word only if it
    is too wide."""
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
