"""Renders a PDF page as a picture by pypdfium2 (PDFium), which comes with the extra "pdf".

PDFium is not thread-safe, and parses untrusted files in C++: `pdf_process` calls this module in a
process of its own, and reader processes call it directly. Knows nothing about tasks or HTTP.
"""

from __future__ import annotations

import io
from typing import Any, Final

from florence.errors import ImageError, ImageTooLarge
from florence.images.headers import is_picture
from florence.images.limits import ImageLimits

_MARK: Final = b"%PDF-"
MARK_WITHIN: Final = 1024
"""Bytes in which the mark begins: PDF readers accept others before it."""
_POINTS: Final = 72  # an inch
_DAMAGED: Final = "the PDF is cut short or damaged, or has no pages"
NO_LIBRARY: Final = (
    "PDF pages are read where pypdfium2 is installed: pip install pypdfium2, or 'florence2-server[pdf]'"
)


def is_pdf(data: bytes) -> bool:
    """Whether a file with these (first) bytes is a PDF and not a picture."""
    return _MARK in data[:MARK_WITHIN] and not is_picture(data)


def count_pages(data: bytes) -> int:
    """The number of pages. Raises `ImageError` as `render_page`."""
    document = _open(data)
    try:
        return len(document)
    finally:
        document.close()


def render_page(data: bytes, page: int, limits: ImageLimits) -> bytes:
    """A page, counted from 1, rendered at `limits.pdf_dpi` as a BMP file: RGB on white, rotated as the PDF
    says, with annotations and filled-in forms.

    Raises `ImageError` for a PDF that is broken or encrypted, and for a page that it does not have,
    `ImageTooLarge` for a page with too many pixels.
    """
    document = _open(data)
    try:
        if page > (count := len(document)):
            raise ImageError(
                f"the PDF has {count} page{'s' * (count != 1)}; page must be from 1 to {count}, got {page}"
            )
        return _render(document, page, limits)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # ctypes and pypdfium2 raise many types for damaged pages
        raise ImageError(f"page {page} of the PDF is damaged: {error}") from error
    finally:
        document.close()


def _render(document: Any, page: int, limits: ImageLimits) -> bytes:
    document.init_forms()  # before a page is loaded, or its fields stay empty
    loaded = document[page - 1]
    scale = limits.pdf_dpi / _POINTS
    width, height = (max(1, round(side * scale)) for side in loaded.get_size())
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageTooLarge(
            f"page {page} of the PDF has {width}x{height} = {width * height} pixels at {limits.pdf_dpi} dots "
            f"per inch; up to {limits.max_pixels} pixels, and {limits.max_side} a side, are allowed; "
            "render it at a lower resolution"
        )
    image = loaded.render(scale=scale, rev_byteorder=True).to_pil()
    file = io.BytesIO()
    (image if image.mode == "RGB" else image.convert("RGB")).save(file, "BMP")
    return file.getvalue()


def _open(data: bytes) -> Any:
    """PDFium's document over `data`, which must live as long. A document without pages is closed here, since
    pypdfium2 would leak it."""
    try:
        import pypdfium2
    except ImportError:
        raise ImageError(NO_LIBRARY) from None
    handle = pypdfium2.raw.FPDF_LoadMemDocument64(data, len(data), None)
    if not handle:
        if pypdfium2.raw.FPDF_GetLastError() == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise ImageError("the PDF is encrypted; save it without a password")
        raise ImageError(_DAMAGED)
    document = pypdfium2.PdfDocument(handle)
    if len(document) < 1:
        document.close()
        raise ImageError(_DAMAGED)
    return document
