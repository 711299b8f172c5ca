"""Reads pictures' files, up to a number of bytes. Knows nothing about their contents."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from florence.errors import ImageError, ImageTooLarge


def read_file(path: str, most: int | None = None) -> bytes:
    """The bytes of a local file. Raises `ImageError` where it can't be read, which says so if the path is a
    URL, and `ImageTooLarge` above `most` bytes."""
    try:
        with Path(path).open("rb") as file:
            return file.read() if most is None else read_most(file, most)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason: object = error
        if "://" in path:
            reason = (
                "it is a URL; download it, or let a service fetch it (image_url, in the client ImageUrl(url))"
            )
        raise ImageError(f"the picture {path!r} can't be read: {reason}") from error


def read_most(file: IO[bytes], most: int) -> bytes:
    """Read the whole file. Raises `ImageTooLarge` where it has more than `most` bytes, without reading the
    rest."""
    return checked_size(file.read(most + 1), most)


def checked_size(content: bytes, most: int) -> bytes:
    """The content. Raises `ImageTooLarge` where it has more than `most` bytes."""
    if len(content) > most:
        raise too_large(most)
    return content


def too_large(most: int) -> ImageTooLarge:
    """The error for a picture with more than `most` bytes."""
    return ImageTooLarge(f"the picture has more than the {most} bytes allowed (FLORENCE_MAX_IMAGE_BYTES)")
