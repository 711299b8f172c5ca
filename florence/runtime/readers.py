"""Reading pictures: from what a caller gives to pixels at the model's input size, beside the engine.

`Readers` is what the dispatcher uses; `ThreadReaders` reads in threads of this process. Knows nothing about
tasks, tokens or devices.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence.engine.request import digest_of
from florence.images.decode import Preprocessing, load_image, resize_pixels
from florence.images.limits import ImageLimits
from florence.runtime.futures import complete, shut_down

READER_THREADS = 2
"""Decoders release the interpreter's lock, and the engine needs the other cores."""

Picture = Image.Image | bytes | str | Path | Callable[[], bytes]
"""A PIL picture, an encoded one's bytes, its path, or what gives its bytes when they are read."""


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture as the model takes it. `size`: width and height of the original; `pixels`: uint8 [height,
    width, 3] at the model's input size; `digest`: of the pixels."""

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    digest: bytes


def read_picture(image: Picture, limits: ImageLimits, preprocessing: Preprocessing) -> ReadPicture:
    """The picture at the model's input size. A PIL picture is taken as it is; all else is turned by its EXIF
    orientation. Raises `ImageError` and `ImageTooLarge`."""
    picture = load_image(image() if callable(image) else image, limits)
    pixels = resize_pixels(picture, preprocessing.height, preprocessing.width, preprocessing.resample)
    return ReadPicture(picture.size, pixels, digest_of(pixels))


class Readers(Protocol):
    """Reads pictures beside the engine, several at once, starting in the order of `read`."""

    def read(self, image: Picture) -> Future[ReadPicture]:
        """Start to read a picture; the future raises what reading raised. Returns at once; not after `close`.

        Cancelling the future lets go of a picture that is not read yet. The future's callbacks run in a
        thread of the readers, take some milliseconds, and may cancel other futures.
        """

    def close(self, drain_s: float | None = None) -> None:
        """Finish what was given, for at most `drain_s` seconds, and cancel the rest. Futures that are done
        when it returns have run their callbacks."""


class ThreadReaders:
    """`Readers` in threads of this process; `read` reads one picture."""

    def __init__(self, read: Callable[[Picture], ReadPicture], threads: int = READER_THREADS) -> None:
        self._read_picture = read
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="florence-reader")
        self._unread: dict[Future[ReadPicture], Picture] = {}

    def read(self, image: Picture) -> Future[ReadPicture]:
        future: Future[ReadPicture] = Future()
        self._unread[future] = image  # the pool keeps what it is given until its turn, cancelled or not
        future.add_done_callback(self._forget)
        self._pool.submit(self._read, future)
        return future

    def close(self, drain_s: float | None = None) -> None:
        shut_down(self._pool, drain_s)
        for future in list(self._unread):
            future.cancel()

    def _read(self, future: Future[ReadPicture]) -> None:
        try:
            image = self._unread.pop(future)
        except KeyError:  # cancelled
            return
        outcome = self._outcome(image)
        del image
        complete(future, outcome)

    def _outcome(self, image: Picture) -> ReadPicture | BaseException:
        try:
            return self._read_picture(image)
        except BaseException as error:  # noqa: BLE001  (it is the outcome, as in any executor)
            return error

    def _forget(self, future: Future[ReadPicture]) -> None:
        self._unread.pop(future, None)
