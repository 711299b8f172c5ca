"""One reader process, seen from the process that uses it: started, given pictures, replaced when it ends.

Knows nothing about queues and threads.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence.errors import Closed, EngineError, ImageError, ImageTooLarge, quote
from florence.images.decode import encoded
from florence.images.isolated import command, environment
from florence.images.limits import ImageLimits
from florence.images.preprocess import InputSize
from florence.images.seen import ORIGINAL, View
from florence.readers import wire
from florence.readers.budget import DecodeBudget
from florence.readers.memory import PixelMemory
from florence.readers.picture import LocalReader, PictureSource, ReadPicture

log = logging.getLogger(__name__)

_MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
"""glibc keeps this much freed memory for the next picture; returning it to the system costs 3 ms a
picture."""
_ATTEMPTS: Final = 3
_START_S: Final = 60.0
_STDERR_BYTES: Final = 2000  # at most, at the end of what goes into a log
_TIMED_OUT: Final = "it took too long"


class _Ended(Exception):
    """The process ended, or must be ended. `begun`: it had begun to read the picture. `timed_out`: it did not
    answer in time."""

    def __init__(self, *, begun: bool, timed_out: bool) -> None:
        super().__init__()
        self.begun, self.timed_out = begun, timed_out


class ProcessReader:
    """A `Reader` that works in a process of its own.

    It owns one slot of `memory`. After each picture it hands that slot out and takes a free one; where none
    is free the pixels are copied, so a reader never waits for requests that hold pixels.
    """

    def __init__(
        self,
        size: InputSize,
        limits: ImageLimits,
        process_limits: wire.ProcessLimits,
        memory: PixelMemory,
        budget: DecodeBudget,
    ) -> None:
        slot = memory.acquire()
        if slot is None:
            raise ValueError("each reader needs a slot of its own")
        self._slot, self._memory, self._budget = slot, memory, budget
        self._local = LocalReader(size, limits)
        self._job = wire.ReadJob(memory.fd, memory.slot_bytes, size, limits, process_limits)
        self._stopped = False
        self._start()

    @property
    def pid(self) -> int:
        """The current reader process's id."""
        return self._process.pid

    def read(self, image: PictureSource, view: View = ORIGINAL) -> ReadPicture:
        """As `LocalReader.read`. A picture that crashes the process, or exceeds its limits, raises ImageError
        too. Raises Closed after `stop`, and EngineError where readers can't be started.

        A PIL picture is resized here, in the calling thread: it is decoded already.
        """
        if isinstance(image, Image.Image):
            return self._local.read(image, view)
        if callable(image):
            image = image()
        if isinstance(image, str | os.PathLike):
            # Absolute: a reader keeps the working directory in which it started.
            return self._send(wire.PATH, os.fsencode(Path(image).absolute()), view)
        return self._send(wire.DATA, encoded(image, self._job.limits), view)

    def stop(self) -> None:
        """Kill the process, even while it reads. May be called in any thread."""
        self._stopped = True
        self._process.kill()

    def close(self) -> None:
        """Kill the process, and release its slot."""
        self._process.kill()
        self._end()
        self._memory.release(self._slot)

    def _send(self, kind: int, payload: bytes, view: View) -> ReadPicture:
        for _ in range(_ATTEMPTS):
            try:
                return self._exchange(kind, payload, view)
            except _Ended as error:
                ended = error
            status, stderr_text = self._replace(timed_out=ended.timed_out)
            if ended.begun:
                raise self._error_of(status)
        raise EngineError(
            f"processes that read pictures end at their start ({status}); stderr: {stderr_text}"
        )

    def _exchange(self, kind: int, payload: bytes, view: View) -> ReadPicture:
        begun = False
        try:
            self._socket.settimeout(_START_S)
            seen = view.original, *view.background, view.frame or 0, view.page or 0
            head = wire.REQUEST.pack(kind, *seen, self._slot, len(payload))
            self._socket.sendall(head + wire.pack_tiling(view.tiling))
            self._socket.sendall(payload)
            self._receive(len(wire.BEGUN))
            begun = True
            self._socket.settimeout(self._job.process_limits.wall_s)
            (needed,) = wire.NEEDED.unpack(self._receive(wire.NEEDED.size))
            with self._budget.hold(min(needed, self._budget.total)):
                if needed:
                    self._socket.sendall(wire.GO)
                picture = self._receive_picture(view)
        except OSError as error:  # closed by the other end, or a timeout
            raise _Ended(begun=begun, timed_out=isinstance(error, TimeoutError)) from error
        if stderr_text := self._read_stderr():
            log.debug("while reading a picture: %s", stderr_text)
        return picture

    def _receive_picture(self, view: View) -> ReadPicture:
        """Receive a picture, one tile after the other. Raises ImageError where the reader can't read it."""
        size, read = self._receive_tile()
        parts, tiles = self._job.size.cut(size, view), [read]
        for _ in parts[1:]:
            self._socket.sendall(wire.SLOT.pack(self._slot))
            tiles.append(self._receive_tile()[1])
        return ReadPicture.of_tiles(size, parts, tiles)

    def _receive_tile(self) -> tuple[tuple[int, int], tuple[NDArray[np.uint8], bytes]]:
        """Receive a tile: the size of the whole picture; the tile's pixels and digest."""
        status, width, height, digest, length = wire.REPLY.unpack(self._receive(wire.REPLY.size))
        text = self._receive(min(length, wire.MAX_TEXT_BYTES)).decode(errors="replace")
        if status != wire.READ:
            raise (ImageTooLarge if status == wire.TOO_LARGE else ImageError)(text)
        try:
            return (width, height), (self._take(), digest)
        except MemoryError:
            self._process.kill()  # it may wait for the next slot
            raise

    def _take(self) -> NDArray[np.uint8]:
        spare = self._memory.acquire()
        if spare is None:
            return self._memory.copy(self._slot)
        pixels = self._memory.hand_out(self._slot)
        self._slot = spare
        return pixels

    def _receive(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self._socket.recv(count)
            if not part:
                raise ConnectionResetError("the reader ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # what does not fit is lost
        self._stderr = os.fdopen(read_end, "rb", buffering=0)
        with theirs, os.fdopen(write_end, "wb", buffering=0) as errors:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command("florence.readers.worker", self._job.pack()),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(self._memory.fd,),
                process_group=0,  # Ctrl-C must reach only the process that drains
                env=_MALLOC | environment(),
            )
        if self._stopped:  # `stop` was called meanwhile
            self._process.kill()

    def _replace(self, *, timed_out: bool) -> tuple[str, str]:
        """Start a new process in place of one that ended; returns how that ended, and the last of its stderr.
        Raises Closed after `stop`."""
        if timed_out:
            self._process.kill()
        status, stderr_text = self._end()
        status = _TIMED_OUT if timed_out else status
        if self._stopped:
            raise Closed("this model was closed before the picture was read")
        log.warning("a reader of pictures ended (%s) and is replaced; stderr: %s", status, stderr_text)
        self._start()
        return status, stderr_text

    def _end(self) -> tuple[str, str]:
        """Wait for the process to end; returns how it ended, and the last of its stderr."""
        try:
            code = self._process.wait(_START_S)  # its socket is closed, or it was killed
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        stderr_text = self._read_stderr()
        self._socket.close()
        self._stderr.close()
        return _status(code), stderr_text

    def _read_stderr(self) -> str:
        """What the process wrote to its standard error since the last time, in one line, for a log."""
        written = None if self._stderr.closed else self._stderr.read(1 << 16)  # None: there is nothing
        return quote(written[-_STDERR_BYTES:].decode(errors="replace"), _STDERR_BYTES) if written else ""

    def _error_of(self, status: str) -> ImageError:
        if status == "SIGXCPU":
            return ImageTooLarge(
                f"the picture takes more than {self._job.process_limits.cpu_s} s of CPU time to decode"
            )
        if status == _TIMED_OUT:
            return ImageError(f"the picture was not read within {self._job.process_limits.wall_s:g} s")
        return ImageError(f"the picture can't be decoded: its reader ended ({status})")


def _status(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"
