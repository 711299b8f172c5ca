"""Replaces documents (PDFs, and TIFF files with several pages) by items for their pages. Other items are not
changed. Knows nothing about tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from florence.bulk.items import Pages, PictureItem
from florence.errors import ImageError
from florence.images.headers import format_of, read_header
from florence.images.limits import DEFAULT_LIMITS
from florence.images.pdf import MARK_WITHIN, is_pdf
from florence.images.pdf_process import count_pages_isolated


def page_items(items: Iterable[PictureItem], pages: Pages, skipped: Counter[str]) -> Iterator[PictureItem]:
    """An item for each of `pages` of each document. `skipped`: counts documents with none of these pages.

    A document that can't be read stays one item, so that its failure is reported.
    """
    for item in items:
        try:
            count = _count(item)
        except ImageError:
            count = None
        if count is None or item.page is not None:
            yield item
            continue
        numbers = pages.of(count)
        if not numbers:
            skipped["documents without the pages asked for"] += 1
        yield from (item.at(page=number) for number in numbers)


def _count(item: PictureItem) -> int | None:
    """The number of pages; None if the item is not a document. Raises `ImageError`."""
    if isinstance(item.source, str):
        first = first_bytes(item.source)
        if first is None or not (is_pdf(first) or format_of(first) == "TIFF"):
            return None
    data = item.read()
    if is_pdf(data):
        return count_pages_isolated(data, DEFAULT_LIMITS)
    if format_of(data) == "TIFF":
        count = read_header(data, DEFAULT_LIMITS.max_frames).frames
        return count if count > 1 else None
    return None


def first_bytes(path: str) -> bytes | None:
    """The bytes of a local file that tell whether it is a picture or a document. None if it can't be read:
    asking about it reports that."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MARK_WITHIN)
    except OSError:
        return None
