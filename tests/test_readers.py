"""Readers of pictures, the same as threads and as processes: order, outcomes, cancelling, closing."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from pictures import STORABLE, drawn, saved
from PIL import Image
from waiting import PATIENCE_S, wait_until

from florence.errors import ImageError, ImageTooLarge
from florence.images.decode import load_image
from florence.images.limits import ImageLimits
from florence.images.preprocess import InputSize, resize
from florence.readers.cores import available_cores, default_readers
from florence.readers.processes import ProcessReaders
from florence.readers.readers import Readers, ThreadReaders

SIZE = InputSize(40, 30, 3)


class Held:
    """A function that gives a picture's bytes after `release` is set."""

    def __init__(self, data: bytes) -> None:
        self.asked, self.release = threading.Event(), threading.Event()
        self._data = data

    def __call__(self) -> bytes:
        self.asked.set()
        assert self.release.wait(PATIENCE_S)
        return self._data


@pytest.fixture(params=[ThreadReaders, ProcessReaders])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Readers]]:
    """A function that starts readers of either kind, which are closed at the end."""
    made: list[Readers] = []

    def readers(count: int = 1, **options: Any) -> Readers:
        made.append(request.param(SIZE, count=count, **options))
        return made[-1]

    yield readers
    for one in made:
        one.close(drain_s=PATIENCE_S)


def test_the_pixels_are_the_librarys_own(make: Callable[..., Readers], tmp_path: Path) -> None:
    """Each format and mode gives the pixels that this process decodes and resizes, with size and digest."""
    readers = make(2)
    for format, modes in STORABLE.items():
        for mode in modes:
            image = drawn(mode=mode)
            data = saved(image, format)
            path = tmp_path / f"{mode.replace(';', '')}.{format}"
            path.write_bytes(data)
            for picture in (data, path, str(path), lambda data=data: data, image):
                read = readers.read(picture).result(PATIENCE_S)
                expected = np.asarray(resize(load_image(image if picture is image else data), SIZE))
                assert np.array_equal(read.pixels, expected), (format, mode)
                assert read.digest == sha256(read.pixels.tobytes()).digest()
                assert read.size == image.size
                assert (read.pixels.shape, read.pixels.dtype) == ((40, 30, 3), np.uint8)
                assert read.pixels.flags.c_contiguous
                assert read.pixels.flags.writeable


def test_the_goldens_come_out_bit_for_bit(shared: Path) -> None:
    """A reader process gives the pixels of the original's processor for each golden input."""
    rows = json.loads((shared / "goldens" / "A" / "golden.json").read_text())["images"]
    readers = ProcessReaders(InputSize(768, 768, 3), count=1)
    checked = 0
    for row in rows:
        if "exif_transposed_alternative" not in row:
            read = readers.read(shared / "goldens" / "A" / "inputs" / row["file"]).result(PATIENCE_S)
            assert read.digest.hex() == row["resized_u8_sha256"]
            checked += 1
    readers.close()
    assert checked == 7


def test_a_turned_picture_has_the_turned_size(make: Callable[..., Readers]) -> None:
    """The size is that of the upright picture, which an answer's coordinates refer to."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(drawn(50, 20), "JPEG", exif=exif.tobytes())
    assert make().read(data).result(PATIENCE_S).size == (20, 50)


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        (b"", ImageError, "0 bytes"),
        (b"no picture", ImageError, "known format"),
        (Path("/no/such/file"), ImageError, "/no/such/file"),
        ("nul\0l", ImageError, "can't be read"),
        (7, ImageError, "as int"),
        (lambda: 1 / 0, ZeroDivisionError, "zero"),
        (saved(drawn(200, 200)), ImageTooLarge, "200x200"),
        (drawn(200, 200), ImageTooLarge, "200x200"),
        (saved(drawn(60, 60, "RGB"), "BMP"), ImageTooLarge, "bytes"),
    ],
    ids=range(9),
)
def test_what_is_wrong_with_a_picture_comes_in_its_future(
    make: Callable[..., Readers], picture: Any, error: type[Exception], words: str
) -> None:
    """Both kinds of readers give the same error in the future, and read the next picture."""
    readers = make(limits=ImageLimits(max_bytes=10_000, max_pixels=10_000))
    with pytest.raises(error, match=words):
        readers.read(picture).result(PATIENCE_S)
    assert readers.read(saved(drawn())).result(PATIENCE_S).size == (37, 23)


def test_reading_starts_in_the_order_of_arrival(make: Callable[..., Readers]) -> None:
    """Reading starts in the order of arrival for pictures of any size."""
    readers, order = make(), []
    held = Held(saved(drawn()))
    futures = [readers.read(held)]

    def give(number: int) -> bytes:
        order.append(number)
        return saved(drawn(10 + 100 * (number % 3), 10))

    futures += [readers.read(lambda number=number: give(number)) for number in range(9)]
    held.release.set()
    assert wait(futures, PATIENCE_S).not_done == set()
    assert order == list(range(9))


def test_a_cancelled_picture_is_never_read_and_let_go_at_once(make: Callable[..., Readers]) -> None:
    """A picture cancelled while its reader is busy is never read, and `concurrent.futures.wait` sees it
    end."""
    readers, held, unread = make(), Held(saved(drawn())), Held(b"")
    busy, waiting = readers.read(held), readers.read(unread)
    assert held.asked.wait(PATIENCE_S)
    assert waiting.cancel()
    assert wait([waiting], PATIENCE_S).done
    held.release.set()
    assert busy.result(PATIENCE_S).size == (37, 23)
    assert readers.read(saved(drawn())).result(PATIENCE_S)
    assert not unread.asked.is_set()


def test_the_result_of_a_cancelled_reading_is_dropped(make: Callable[..., Readers]) -> None:
    """The result of a cancelled reading is dropped, and the reader goes on with the next picture."""
    readers, held = make(), Held(saved(drawn()))
    cancelled = readers.read(held)
    assert held.asked.wait(PATIENCE_S)
    assert cancelled.cancel()
    held.release.set()
    assert readers.read(saved(drawn())).result(PATIENCE_S).size == (37, 23)
    assert cancelled.cancelled()


def test_closing_finishes_what_was_given(make: Callable[..., Readers]) -> None:
    """Closing without a time limit finishes all pictures and callbacks, and leaves no thread."""
    before = set(threading.enumerate())
    readers, called = make(2), []
    futures = [readers.read(saved(drawn(300, 300))) for _ in range(8)]
    for future in futures:
        future.add_done_callback(called.append)
    readers.close()
    assert sorted(map(id, called)) == sorted(map(id, futures))
    assert all(future.result(0).size == (300, 300) for future in futures)
    own = set(threading.enumerate()) - before
    assert not [thread for thread in own if thread.name.startswith("florence-reader")]
    with pytest.raises(RuntimeError, match="closed"):
        readers.read(b"")
    readers.close()


def test_closing_with_a_time_limit_cancels_the_rest(
    make: Callable[..., Readers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing with a time limit cancels what is left, even if a picture never arrives."""
    monkeypatch.setattr("florence.readers.readers.STOP_S", 0.1)
    readers, held = make(), Held(saved(drawn()))
    busy, waiting = readers.read(held), readers.read(saved(drawn()))
    assert held.asked.wait(PATIENCE_S)
    readers.close(drain_s=0.1)
    for future in (busy, waiting):
        with pytest.raises(CancelledError):
            future.result(0)
    held.release.set()


def test_each_reading_is_timed(make: Callable[..., Readers]) -> None:
    """Each reading is timed once, for good and broken pictures."""
    seconds: list[float] = []
    readers = make(on_read=seconds.append)
    for picture in (saved(drawn()), b"no picture"):
        readers.read(picture).exception(PATIENCE_S)
    wait_until(lambda: len(seconds) == 2)
    assert all(second >= 0 for second in seconds)


def test_a_reader_keeps_no_picture(make: Callable[..., Readers]) -> None:
    """A reader keeps neither the given picture nor its pixels."""
    readers, image = make(), drawn()
    future = readers.read(image)
    given, made = ref(image), ref(future.result(PATIENCE_S).pixels)
    del image, future
    wait_until(lambda: given() is None and made() is None)


def test_an_error_that_is_kept_keeps_no_picture(make: Callable[..., Readers]) -> None:
    """The traceback of a kept error, or of its cause, keeps no picture."""
    readers = make()
    image = Image.open(io.BytesIO(saved(drawn(200, 150, "L"))[:-500]))
    future, given = readers.read(image), ref(image)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, ImageError)
    assert error.__cause__ is not None
    del image
    wait_until(lambda: given() is None)


def test_fast_jpeg_changes_only_jpegs_of_twice_the_size(make: Callable[..., Readers]) -> None:
    """With the setting on, only a JPEG of at least twice the size changes, slightly, and keeps its
    reported size."""
    fast = ProcessReaders(InputSize(40, 30, 3, fast_jpeg=True), count=1)
    exact = make()
    small, large = (saved(drawn(*size), "JPEG", quality=95) for size in ((59, 79), (300, 400)))
    for data, same in ((small, True), (saved(drawn(300, 400)), True), (large, False)):
        left, right = (readers.read(data).result(PATIENCE_S) for readers in (exact, fast))
        assert left.size == right.size
        difference = np.abs(left.pixels.astype(int) - right.pixels)
        assert (difference.max() == 0) == same
        assert difference.mean() < 4
    fast.close()


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write these files below the root, which is returned."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "600000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n1:cpuset:/docker/x\n",
                f"{V1}/cpu.cfs_quota_us": "250000\n",
                f"{V1}/cpu.cfs_period_us": "50000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
    ids=range(8),
)
def test_cores_are_what_the_cgroup_leaves(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cores are the smallest of affinity and all cgroup quotas (version 1 and 2), and at least one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    assert available_cores(tree(tmp_path, files)) == cores


def test_readers_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU there are two readers; on a GPU a worker's cores less two, and at least one."""
    for cores, workers, on_gpu, expected in (
        (16, 1, False, 2),
        (16, 1, True, 14),
        (16, 2, True, 6),
        (2, 1, True, 1),
    ):
        monkeypatch.setattr("florence.readers.cores.available_cores", lambda cores=cores: cores)
        assert default_readers(on_gpu=on_gpu, workers=workers) == expected
