"""Pages of PDFs as pictures, rendered in a separate process within limits; a broken PDF is one error."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import fuzzing
import numpy as np
import pypdfium2
import pytest
from pdfs import BLUE, GREEN, RED, pdf
from pictures import drawn, saved
from PIL import Image
from serving import Server
from waiting import PATIENCE_S

from florence.client import Client
from florence.errors import ImageError, ImageTooLarge, RequestError, SettingsError
from florence.images import pdf as pdf_module
from florence.images.decode import open_image
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.pdf_process import count_pages_isolated, render_page_isolated
from florence.images.preprocess import InputSize
from florence.images.seen import ORIGINAL, SEEN, View
from florence.readers.picture import LocalReader
from florence.readers.processes import ProcessReaders

SIZE = InputSize(40, 60, 0)
CHANNELS = {RED: (255, 0, 0), BLUE: (0, 0, 255), GREEN: (0, 255, 0)}


def corner(image: Image.Image) -> object:
    """The colour near the upper left corner."""
    return image.getpixel((5, 5))


def test_each_page_is_found_by_its_number() -> None:
    """A page is rendered at 150 dots an inch on white, in both views; without a number it is the first."""
    data = pdf()
    for view in (SEEN, ORIGINAL):
        image = open_image(data, view=view)
        assert (image.mode, image.size, corner(image)) == ("RGB", (300, 150), CHANNELS[RED])
        assert image.getpixel((200, 100)) == (255, 255, 255)
    for number, colour in enumerate((RED, BLUE, GREEN), start=1):
        assert corner(open_image(data, view=View(page=number))) == CHANNELS[colour]
    assert count_pages_isolated(data, DEFAULT_LIMITS) == 3


def test_a_page_is_turned_as_the_pdf_says() -> None:
    """A page is rotated as its PDF says: the square in the upper left corner moves to the upper right one."""
    image = open_image(pdf(rotate=90))
    assert image.size == (150, 300)
    assert image.getpixel((145, 5)) == CHANNELS[RED]


def test_the_resolution_is_a_limit_of_its_own() -> None:
    """A page with too many pixels is refused before it is rendered, a resolution over 600 is an error, and
    0 means that no PDF is read."""
    assert open_image(pdf(), ImageLimits(pdf_dpi=72)).size == (144, 72)
    with pytest.raises(ImageTooLarge, match="300x150 = 45000 pixels at 150 dots per inch"):
        open_image(pdf(), ImageLimits(max_pixels=44_999))
    with pytest.raises(ImageTooLarge, match="a side"):
        open_image(pdf(size=(200_000, 10)), DEFAULT_LIMITS)
    with pytest.raises(SettingsError, match="at most 600"):
        ImageLimits(pdf_dpi=601)
    with pytest.raises(ImageError, match="a service reads no PDF"):
        open_image(pdf(), ImageLimits(pdf_dpi=0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pdf(encrypted=True), "encrypted; save it without a password"),
        (b"%PDF-1.7\nnothing", "cut short or damaged"),
        (pdf(()), "cut short or damaged"),
        (pdf()[:200], "cut short or damaged"),
    ],
)
def test_a_pdf_that_cant_be_read_is_one_error(data: bytes, words: str) -> None:
    """A broken PDF is one error in a separate process and in a reader process, which then reads the next
    picture."""
    with pytest.raises(ImageError, match=words):
        open_image(data)
    readers = ProcessReaders(SIZE, count=1)
    try:
        with pytest.raises(ImageError, match=words):
            readers.read(data).result(PATIENCE_S)
        assert readers.read(pdf(), View(page=3)).result(PATIENCE_S).size == (300, 150)
    finally:
        readers.close()


def test_readers_read_a_page_alike() -> None:
    """A reader thread and a reader process give the same pixels, and both refuse a page past the end and a
    frame."""
    wanted = LocalReader(SIZE).read(pdf(), View(page=2))
    readers = ProcessReaders(SIZE, count=1)
    try:
        read = readers.read(pdf(), View(page=2)).result(PATIENCE_S)
        assert (read.size, read.digest) == (wanted.size, wanted.digest) == ((300, 150), wanted.digest)
        assert np.array_equal(read.pixels[0, 0], CHANNELS[BLUE])
        for view, words in ((View(page=4), "from 1 to 3, got 4"), (View(frame=1), "leave frame out")):
            with pytest.raises(ImageError, match=words):
                readers.read(pdf(), view).result(PATIENCE_S)
            with pytest.raises(ImageError, match=words):
                LocalReader(SIZE).read(pdf(), view)
    finally:
        readers.close()


def test_a_renderer_that_ends_fails_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer that crashes or takes too long fails its request; the error gives the exit status or the
    time limit."""
    from florence.images import pdf_process

    def starts(program: str) -> None:
        monkeypatch.setattr(pdf_process, "command", lambda *_, **__: [sys.executable, "-c", program])

    starts("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ImageError, match=r"its process ended \(exit status -11\)"):
        render_page_isolated(pdf(), 1, DEFAULT_LIMITS)
    starts("import time; time.sleep(1000)")
    monkeypatch.setattr(pdf_process, "WALL_S", 0.2)
    with pytest.raises(ImageError, match="not read within"):
        render_page_isolated(pdf(), 1, DEFAULT_LIMITS)


def test_all_that_is_opened_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All documents, pages and bitmaps of PDFium are closed, for whole and damaged PDFs and one without
    pages."""
    raw = pypdfium2.raw
    opened: Counter[str] = Counter()

    def counted(function: Any, kind: str, sign: int) -> Any:
        def call(*arguments: Any) -> Any:
            handle = function(*arguments)
            opened[kind] += sign * (sign < 0 or bool(handle))
            return handle

        return call

    for kind, opens, closes in (
        ("document", "FPDF_LoadMemDocument64", "FPDF_CloseDocument"),
        ("page", "FPDF_LoadPage", "FPDF_ClosePage"),
        ("bitmap", "FPDFBitmap_CreateEx", "FPDFBitmap_Destroy"),
        ("form", "FPDFDOC_InitFormFillEnvironment", "FPDFDOC_ExitFormFillEnvironment"),
    ):
        monkeypatch.setattr(raw, opens, counted(getattr(raw, opens), kind, 1))
        monkeypatch.setattr(raw, closes, counted(getattr(raw, closes), kind, -1))
    target, read = fuzzing.TARGETS["pdf"], 0
    for number in range(300):
        data = pdf(()) if number == 0 else target.input("pdf", 1, number)
        with suppress(ImageError):
            read += bool(pdf_module.render_page(data, 2, fuzzing.SMALL))
    assert read > 50
    assert set(opened) >= {"document", "page"}
    assert not any(opened.values())


def test_memory_is_bounded() -> None:
    """A page within the pixel limits that needs more memory than allowed is refused."""
    with pytest.raises(ImageError, match=r"memory|ended|damaged"):
        open_image(pdf(size=(3000, 3000)), ImageLimits(decode_bytes=50 * 2**20))


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pypdfium2 the error names the extra to install."""
    monkeypatch.setattr("florence.images.pdf_process.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"florence2-server\[pdf\]"):
        open_image(pdf())
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    from florence.images.pdf import render_page

    with pytest.raises(ImageError, match=r"florence2-server\[pdf\]"):
        render_page(pdf(), 1, DEFAULT_LIMITS)


@pytest.mark.slow
def test_a_service_reads_no_pdf(demo_server: Server) -> None:
    """A service refuses a PDF and says what to do instead; it reads pages of TIFF files."""
    pages = [drawn(24, 16, frame=index) for index in range(3)]
    tiff = saved(pages[0], "TIFF", save_all=True, append_images=[drawn(48, 32), *pages[1:]])
    with Client(demo_server.url) as client:
        with pytest.raises(RequestError, match="a service reads no PDF: `florence run`"):
            client.caption(pdf())
        assert client.caption(tiff, page=2).image_size.width == 48
        with pytest.raises(RequestError, match="page must be from 1 to 4, got 5"):
            client.caption(tiff, page=5)
