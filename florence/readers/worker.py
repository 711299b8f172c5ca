"""A reader process: takes encoded pictures from its standard input, a socket, and leaves pixels in slots.

It ends when the other end of the socket is closed, so with the process that started it. The system ends it
when a picture takes more CPU time than allowed; memory beyond its limit is a MemoryError. Its standard error,
where C libraries write, is read and bounded by the process that started it. Imports as little as it can:
there is one of these for each core.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import sys
import warnings
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import check_bytes, encoded
from florence.images.limits import ImageLimits
from florence.images.preprocess import InputSize, read_resized
from florence.readers import wire

_SOCKET = 0
_PLUGINS = ("Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP")  # else Pillow loads all forty at the first TIFF


def main() -> None:
    """Serve until the socket is closed."""
    warnings.simplefilter("ignore")
    for name in _PLUGINS:
        import_module(f"PIL.{name}ImagePlugin")
    job = wire.ReadJob(*json.loads(sys.argv[-1]))
    memory = mmap.mmap(job.memory_fd, 0)
    size = InputSize(job.height, job.width, job.resample, job.fast_jpeg)
    limits = ImageLimits(job.max_bytes, job.max_pixels, job.max_frames)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, job.memory_bytes)
    while head := _receive(wire.REQUEST.size):
        kind, slot, length = wire.REQUEST.unpack(head)
        payload = bytes(_receive(length))
        _send(wire.BEGUN)
        _limit_cpu(job.cpu_s)
        _send(_reply(kind, payload, size, limits, memory, slot * job.slot_bytes))


def _reply(
    kind: int, payload: bytes, size: InputSize, limits: ImageLimits, memory: mmap.mmap, start: int
) -> bytes:
    """Read one picture; what is sent back."""
    try:
        if kind == wire.PATH:
            payload = encoded(Path(os.fsdecode(payload)), limits)
        check_bytes(len(payload), limits)
        image, (width, height) = read_resized(payload, size, limits)
        pixels = image.tobytes()
        memory[start : start + len(pixels)] = pixels
        return wire.REPLY.pack(wire.READ, width, height, sha256(pixels).digest(), 0)
    except ImageError as error:
        status = wire.TOO_LARGE if isinstance(error, ImageTooLarge) else wire.REFUSED
        text = str(error)
    except MemoryError:
        status = wire.TOO_LARGE
        text = "the picture takes more memory to decode than a reader may use"
    raw = text.encode(errors="replace")[: wire.LONGEST_TEXT]
    return wire.REPLY.pack(status, 0, 0, b"", len(raw)) + raw


def _receive(count: int) -> bytearray:
    """So many bytes; none where the other end is closed."""
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


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _limit_cpu(seconds: int) -> None:
    """So many more from now on; the system counts whole seconds since the process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(
        resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )
