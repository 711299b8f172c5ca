"""The error for a picture file that can't be read."""

from __future__ import annotations

from florence.errors import ImageError


def unreadable(path: str, error: Exception) -> ImageError:
    """The error to raise for `path`; it says so if the path is a URL."""
    reason: object = error
    if "://" in path:
        reason = (
            "it is a URL; download it, or let a service fetch it (image_url, in the client ImageUrl(url))"
        )
    return ImageError(f"the picture {path!r} can't be read: {reason}")
