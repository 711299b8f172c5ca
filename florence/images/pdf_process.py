"""Renders PDF pages, each in a process of its own, with limits on memory and time.

So a PDF that crashes PDFium, or keeps it busy for ever, fails one request only. Where the system can't limit
memory (Windows), only time is limited. Knows nothing about tasks.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from florence.errors import ImageError, ImageTooLarge
from florence.images import pdf
from florence.images.isolated import command, environment, limit
from florence.images.limits import ImageLimits

_CPU_S: Final = 20
WALL_S: Final = 120.0
_DONE, _REFUSED, _TOO_LARGE = b"+", b"-", b"!"


def render_page_isolated(data: bytes, page: int, limits: ImageLimits) -> bytes:
    """`pdf.render_page` in a process of its own. Also raises `ImageError` when the process crashes or takes
    too long."""
    return _ask(data, page, limits)


def count_pages_isolated(data: bytes, limits: ImageLimits) -> int:
    """`pdf.count_pages` in a process of its own."""
    return int(_ask(data, 0, limits))


def _ask(data: bytes, page: int, limits: ImageLimits) -> bytes:
    library = find_spec("pypdfium2")
    if library is None or library.origin is None:
        raise ImageError(pdf.NO_LIBRARY)
    words = map(str, (page, *astuple(limits)))
    started = command("florence.images.pdf_process", *words, packages=(Path(library.origin).parents[1],))
    try:
        ran = subprocess.run(
            started, input=data, capture_output=True, timeout=WALL_S, check=False, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"the PDF was not read within {WALL_S:g} s") from None
    status, content = ran.stdout[:1], ran.stdout[1:]
    if ran.returncode or not status:
        raise ImageError(f"the PDF can't be read: its process ended (exit status {ran.returncode})")
    if status != _DONE:
        raise (ImageTooLarge if status == _TOO_LARGE else ImageError)(content.decode(errors="replace"))
    return content


def main() -> None:
    """Runs in the process: reads the PDF from standard input, writes the result to standard output."""
    page, *numbers = map(int, sys.argv[1:])
    limits = ImageLimits(*numbers)
    data = sys.stdin.buffer.read()
    limit(core=0, cpu=_CPU_S, data=limits.decode_bytes + 3 * len(data))
    try:
        answer = pdf.render_page(data, page, limits) if page else str(pdf.count_pages(data)).encode()
        reply = _DONE + answer
    except ImageTooLarge as error:
        reply = _TOO_LARGE + str(error).encode(errors="replace")
    except ImageError as error:
        reply = _REFUSED + str(error).encode(errors="replace")
    except MemoryError:
        reply = _TOO_LARGE + b"rendering the PDF's page takes more memory than FLORENCE_DECODE_MEMORY_BYTES"
    sys.stdout.buffer.write(reply)
