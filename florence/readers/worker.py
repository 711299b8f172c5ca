"""A reader process: takes encoded pictures from its standard input, a socket, and writes pixels into slots.

It ends when the other end of the socket is closed, and so together with the process that started it. The
kernel kills it when a picture takes more CPU time than allowed; more memory than computed from the picture's
header is a MemoryError. Its standard error, where C libraries write, is read and bounded by the process that
started it. Imports as little as it can: there may be one for each core. Knows nothing about tasks and models.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import sys
import warnings
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from PIL import AvifImagePlugin, Image

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import as_picture, encoded, inspect
from florence.images.isolated import limit, limit_memory
from florence.images.limits import ImageLimits
from florence.images.pdf import render_page
from florence.images.preprocess import memory_to_read, read_tiles
from florence.images.seen import View
from florence.readers import wire

_SOCKET = 0
_PLUGINS = ("Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP")  # else Pillow loads all forty at the first TIFF


def main() -> None:
    """Serve until the socket is closed."""
    warnings.simplefilter("ignore")
    for name in _PLUGINS:
        import_module(f"PIL.{name}ImagePlugin")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as the other decoders; each thread takes memory
    job = wire.ReadJob.unpack(sys.argv[1])
    limit(core=0)
    reader = _SlotWriter(job, mmap.mmap(job.memory_fd, 0))
    while head := _receive(wire.REQUEST.size):
        kind, original, red, green, blue, frame, page, slot, length = wire.REQUEST.unpack(head)
        tiling = wire.read_tiling(_receive(wire.TILING.size))
        payload = bytes(_receive(length))
        _send(wire.BEGUN)
        _limit_cpu(job.process_limits.cpu_s)
        view = View(original, (red, green, blue), frame or None, page or None, tiling)
        reader.read(kind, payload, view, slot)


class _SlotWriter:
    """Reads pictures as its job says, into the slots of `memory`."""

    def __init__(self, job: wire.ReadJob, memory: mmap.mmap) -> None:
        self._job, self._memory = job, memory
        self._size, self._limits = job.size, job.limits

    def read(self, kind: int, payload: bytes, view: View, slot: int) -> None:
        """Read one picture; sends a REPLY for each tile, or one with an error."""
        told = False
        try:
            if kind == wire.PATH:
                payload = encoded(Path(os.fsdecode(payload)), self._limits)
            payload, view = as_picture(payload, self._limits, view, self._render)
            self._limit_memory(2 * len(payload))  # the header's parser copies what the decoder needs
            header = inspect(payload, self._limits, view)
            needed = memory_to_read(header, self._size, self._limits, view)
            told = True
            _send(wire.NEEDED.pack(needed))
            _receive(len(wire.GO))
            self._limit_memory(needed)
            size, tiles = read_tiles(header, self._size, view)
            for number, tile in enumerate(tiles):
                if number:
                    (slot,) = wire.SLOT.unpack(_receive(wire.SLOT.size))
                _send(wire.REPLY.pack(wire.READ, *size, self._write(tile, slot), 0))
            return
        except ImageError as error:
            status = wire.TOO_LARGE if isinstance(error, ImageTooLarge) else wire.REFUSED
            text = str(error)
        except MemoryError:
            status = wire.TOO_LARGE
            text = "decoding the picture takes far more memory than its header lets expect"
        if not told:
            _send(wire.NEEDED.pack(0))
        raw = text.encode(errors="replace")[: wire.MAX_TEXT_BYTES]
        _send(wire.REPLY.pack(status, 0, 0, b"", len(raw)) + raw)

    def _render(self, document: bytes, page: int, limits: ImageLimits) -> bytes:
        """Render a PDF's page in this process, which is isolated already."""
        self._limit_memory(limits.decode_bytes)
        return render_page(document, page, limits)

    def _write(self, image: Image.Image, slot: int) -> bytes:
        """Write pixels into a slot; returns their SHA-256 digest."""
        pixels = image.tobytes()
        start = slot * self._job.slot_bytes
        self._memory[start : start + len(pixels)] = pixels
        return sha256(pixels).digest()

    def _limit_memory(self, more: int) -> None:
        limit_memory(more + self._job.process_limits.slack_bytes)


def _receive(count: int) -> bytearray:
    """`count` bytes; empty where the other end is closed. Exits where it is closed within a message."""
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = os.readv(_SOCKET, [view[have:]])
        if got == 0:
            return bytearray() if have == 0 else sys.exit(0)
        have += got
    return data


def _send(data: bytes) -> None:
    while data:
        data = data[os.write(_SOCKET, data) :]


def _limit_cpu(seconds: int) -> None:
    """Allow `seconds` more of CPU time; the kernel counts whole seconds since the process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(cpu=math.ceil(used.ru_utime + used.ru_stime) + seconds)
