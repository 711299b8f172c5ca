"""Reads pictures' files, up to a number of bytes. Knows nothing about their contents."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from florence.errors import ImageError, ImageTooLarge


def read_file(path: str, max_bytes: int | None = None) -> bytes:
    """The bytes of a local file. Raises `ImageError` where it can't be read, which says so if the path is a
    URL, and `ImageTooLarge` above `max_bytes` bytes."""
    try:
        with Path(path).open("rb") as file:
            return file.read() if max_bytes is None else read_bounded(file, max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason: object = (isinstance(error, OSError) and error.strerror) or error
        if "://" in path:
            reason = (
                "it is a URL; download it, or let a service fetch it (image_url, in the client ImageUrl(url))"
            )
        raise ImageError(f"the picture {path!r} can't be read: {reason}") from error


def read_bounded(file: IO[bytes], max_bytes: int) -> bytes:
    """Read the whole file. Raises `ImageTooLarge` where it has more than `max_bytes` bytes, without reading
    the rest."""
    return checked_size(file.read(max_bytes + 1), max_bytes)


def checked_size(content: bytes, max_bytes: int) -> bytes:
    """The content. Raises `ImageTooLarge` where it has more than `max_bytes` bytes."""
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    return content


def too_large(max_bytes: int) -> ImageTooLarge:
    """The error for a picture with more than `max_bytes` bytes."""
    return ImageTooLarge(
        f"the picture has more than the {max_bytes} bytes allowed (FLORENCE_MAX_IMAGE_BYTES)"
    )
