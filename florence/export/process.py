"""A process that draws one answer: it reads a job and the picture from standard input, and writes a PNG to
standard output.

Used by a service, which does not decode pictures in its own process: a picture that crashes a decoder, or
takes too much memory, ends only this process. Knows nothing about HTTP.
"""

from __future__ import annotations

import json
import struct
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Final

from PIL import Image, ImageColor

from florence.errors import ImageError
from florence.export.annotation import Annotation
from florence.export.drawing import Drawing
from florence.images.decode import decode, inspect
from florence.images.isolated import limit
from florence.images.limits import ImageLimits
from florence.images.seen import SEEN, View, to_srgb

MAX_SIDE: Final = 2048
"""Pixels of a drawn picture's longer side; larger pictures are scaled down."""
REFUSED: Final = 3
"""The exit status if the picture can't be read; the reason is on standard error."""
_LENGTH: Final = struct.Struct("<Q")
_CPU_S: Final = 60
_SLACK_BYTES: Final = 512 * 2**20  # for drawing at `MAX_SIDE`, and for Python


@dataclass(frozen=True, slots=True)
class DrawJob:
    """What to draw: the answer's annotations and its text. `limits`: on the picture. `background`, `frame`,
    `page`: as in `View`, the background as #rrggbb."""

    annotations: Sequence[Annotation]
    caption: str
    limits: ImageLimits
    background: str | None = None
    frame: int | None = None
    page: int | None = None

    def pack(self, picture: bytes) -> bytes:
        """The process's input: the job and the picture."""
        head = json.dumps(asdict(self)).encode()
        return _LENGTH.pack(len(head)) + head + picture

    @classmethod
    def unpack(cls, data: bytes) -> tuple[DrawJob, bytes]:
        """The job and the picture from `pack`."""
        start = _LENGTH.size
        (length,) = _LENGTH.unpack_from(data)
        fields = json.loads(data[start : start + length])
        annotations = [Annotation(**each) for each in fields.pop("annotations")]
        limits = ImageLimits(**fields.pop("limits"))
        return cls(annotations=annotations, limits=limits, **fields), data[start + length :]


def draw(job: DrawJob, picture: bytes) -> bytes:
    """The picture with the answer drawn on it, as a PNG. Raises `ImageError`."""
    background = SEEN.background if job.background is None else ImageColor.getrgb(job.background)[:3]
    view = View(background=background, frame=job.frame, page=job.page)
    header = inspect(picture, job.limits, view)
    decoded, (width, height) = decode(header, view, (MAX_SIDE, MAX_SIDE))
    image = to_srgb(decoded, header.profile)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    scale = image.width / width, image.height / height
    drawn = Drawing().draw(image, [_scaled(each, scale) for each in job.annotations], job.caption)
    file = BytesIO()
    drawn.save(file, "PNG", compress_level=4)
    return file.getvalue()


def _scaled(annotation: Annotation, scale: tuple[float, float]) -> Annotation:
    polygons = [
        [value * scale[index % 2] for index, value in enumerate(polygon)] for polygon in annotation.polygons
    ]
    return Annotation(annotation.label, annotation.score, polygons, annotation.shape, annotation.category)


def main() -> None:
    """Draw the job from standard input."""
    warnings.simplefilter("ignore")
    job, picture = DrawJob.unpack(sys.stdin.buffer.read())
    limit(core=0, cpu=_CPU_S, data=job.limits.decode_bytes + _SLACK_BYTES)
    try:
        drawn = draw(job, picture)
    except (ImageError, MemoryError) as error:
        sys.stderr.write(str(error) or "drawing the answer takes too much memory")
        sys.exit(REFUSED)
    sys.stdout.buffer.write(drawn)
