"""Reader processes that crash, are killed, reach a limit or lose their parent, and their shared memory.

A named pipe stands for a slow picture: its reader waits until the bytes are written.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pictures import drawn, saved
from PIL import Image
from waiting import PATIENCE_S, wait_until

from florence.errors import EngineError, ImageError, ImageTooLarge
from florence.images.preprocess import InputSize
from florence.readers.memory import PixelMemory
from florence.readers.picture import ReadPicture
from florence.readers.processes import ProcessReaders
from florence.readers.wire import ProcessLimits

ROOT = Path(__file__).resolve().parents[1]
SIZE = InputSize(40, 30, 3)
GOOD = saved(drawn())
MIB = 2**20


@pytest.fixture
def make() -> Iterator[Callable[..., ProcessReaders]]:
    """A function that starts reader processes, which are closed at the end."""
    made: list[ProcessReaders] = []

    def readers(count: int = 1, **options: Any) -> ProcessReaders:
        made.append(ProcessReaders(SIZE, count=count, **options))
        return made[-1]

    yield readers
    for one in made:
        one.close(drain_s=PATIENCE_S)


class SlowPicture:
    """The path of a picture that a reader must wait for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "picture.png"
        os.mkfifo(self.path)

    def begin(self, readers: ProcessReaders) -> Future[ReadPicture]:
        """Read the picture, and return when its reader waits."""
        future = readers.read(self.path)
        self.end = os.open(self.path, os.O_WRONLY)  # returns once the reader has opened it
        return future

    def finish(self, data: bytes) -> None:
        """Write the picture's bytes."""
        os.write(self.end, data)
        os.close(self.end)


@pytest.fixture
def slow(tmp_path: Path) -> SlowPicture:
    """A slow picture."""
    return SlowPicture(tmp_path)


@pytest.mark.parametrize("kill", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_fails_the_one_picture(
    make: Callable[..., ProcessReaders], slow: SlowPicture, kill: signal.Signals, caplog: Any
) -> None:
    """A crash fails its own picture, naming the signal; a new process reads the pictures behind it."""
    readers = make()
    crashing = slow.begin(readers)
    behind = [readers.read(GOOD) for _ in range(3)]
    (before,) = readers.pids
    os.kill(before, kill)
    with pytest.raises(ImageError, match=kill.name) as caught:
        crashing.result(PATIENCE_S)
    assert caught.value.status == 400
    assert [future.result(PATIENCE_S).size for future in behind] == [(37, 23)] * 3
    assert readers.pids != [before]
    assert kill.name in caplog.text


def test_a_reader_that_dies_idle_fails_nothing(make: Callable[..., ProcessReaders]) -> None:
    """If an idle reader dies, the next picture goes to a new process."""
    readers = make()
    for _ in range(3):
        os.kill(readers.pids[0], signal.SIGKILL)
        assert readers.read(GOOD).result(PATIENCE_S).size == (37, 23)


def test_a_picture_beyond_the_memory_is_refused(make: Callable[..., ProcessReaders]) -> None:
    """A picture that needs too much memory is refused, and the reader goes on. (The limit is set too low.)"""
    readers = make(process_limits=ProcessLimits(slack_bytes=-96 * MIB))
    large = saved(Image.new("RGB", (6000, 6000)))
    with pytest.raises(ImageTooLarge, match="memory"):
        readers.read(large).result(PATIENCE_S)
    assert readers.read(GOOD).result(PATIENCE_S).size == (37, 23)
    assert make().read(large).result(PATIENCE_S).size == (6000, 6000)


def test_a_picture_beyond_the_cpu_time_is_refused(
    make: Callable[..., ProcessReaders], slow: SlowPicture
) -> None:
    """A reader's CPU limit is set for each picture, on top of the time used; the system enforces it."""
    readers = make(process_limits=ProcessLimits(cpu_s=3))
    assert readers.read(GOOD).result(PATIENCE_S)
    refused = slow.begin(readers)
    process = psutil.Process(readers.pids[0])
    used = sum(process.cpu_times()[:2])
    assert used + 2 < process.rlimit(psutil.RLIMIT_CPU)[0] < used + 5
    process.send_signal(signal.SIGXCPU)
    with pytest.raises(ImageTooLarge, match="more than 3 s of CPU time"):
        refused.result(PATIENCE_S)
    assert readers.read(GOOD).result(PATIENCE_S).size == (37, 23)


def test_a_picture_that_never_comes_is_given_up(
    make: Callable[..., ProcessReaders], slow: SlowPicture
) -> None:
    """A picture that never arrives fails after the time limit of a reading."""
    readers = make(process_limits=ProcessLimits(wall_s=0.2))
    with pytest.raises(ImageError, match=r"not read within 0\.2 s"):
        readers.read(slow.path).result(PATIENCE_S)


def test_what_libraries_write_stays_out_of_the_log(
    make: Callable[..., ProcessReaders], capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A library's messages appear only at debug level, shortened to one line for a picture."""
    with caplog.at_level(logging.DEBUG, "florence.readers"):
        readers = make()
        for _ in range(3):
            readers.read(bad_fax()).exception(PATIENCE_S)
        assert readers.read(GOOD).result(PATIENCE_S)
    assert capfd.readouterr() == ("", "")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all("Fax" in line and len(line) < 5000 and "\n" not in line for line in lines)


def bad_fax() -> bytes:
    """A TIFF of 64 x 20,000 pixels in CCITT T.6 with invalid data."""
    data = b"\x55" * 4000
    tags = [(256, 64), (257, 20_000), (258, 1), (259, 4), (262, 0), (273, 8), (277, 1), (278, 20_000)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))]]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_a_cancelled_reading_leaves_the_process_alone(
    make: Callable[..., ProcessReaders], slow: SlowPicture
) -> None:
    """A cancelled reading finishes, its pixels are dropped, and its slot is free again."""
    readers = make()
    before, free = readers.pids, readers.memory.free
    cancelled = slow.begin(readers)
    assert cancelled.cancel()
    slow.finish(GOOD)
    assert readers.read(GOOD).result(PATIENCE_S).size == (37, 23)
    assert readers.pids == before
    wait_until(lambda: readers.memory.free == free)


def test_closing_ends_a_reader_in_the_middle_of_a_picture(
    make: Callable[..., ProcessReaders], slow: SlowPicture
) -> None:
    """When `close` returns, the unfinished future is cancelled and the process is gone."""
    readers = make()
    future, (pid,) = slow.begin(readers), readers.pids
    readers.close(drain_s=0.1)
    assert future.cancelled()
    assert not psutil.pid_exists(pid)


def test_pixels_lie_in_the_shared_memory_until_they_are_let_go(make: Callable[..., ProcessReaders]) -> None:
    """Pixels are a view of the shared memory; any view of them holds the slot, which is not used twice."""
    readers = make(spare_slots=8)
    whole = np.frombuffer(readers.memory.buffer, np.uint8)
    pictures = [drawn(30, 40, frame=frame) for frame in range(4)]
    read = [readers.read(saved(picture)).result(PATIENCE_S).pixels for picture in pictures]
    assert all(np.shares_memory(pixels, whole) for pixels in read)
    assert all(
        np.array_equal(pixels, np.asarray(picture)) for pixels, picture in zip(read, pictures, strict=True)
    )
    assert readers.memory.free == 4
    view = read.pop(0)[2:5, ::2][1:]
    assert readers.memory.free == 4
    del view, read
    wait_until(lambda: readers.memory.free == 8)


def test_pixels_of_more_requests_than_slots_are_copied(make: Callable[..., ProcessReaders]) -> None:
    """When all slots are held, pixels are copied; reading goes on, and no held pixels change."""
    readers = make(2, spare_slots=3)
    pictures = [drawn(30, 40, frame=frame) for frame in range(12)]
    read = [readers.read(saved(picture)).result(PATIENCE_S) for picture in pictures]
    assert readers.memory.free == 0
    for picture, one in zip(pictures, read, strict=True):
        assert np.array_equal(one.pixels, np.asarray(picture))


@pytest.mark.slow
def test_pixels_outlive_the_readers(make: Callable[..., ProcessReaders]) -> None:
    """The memory stays mapped after closing, as long as an array needs it."""
    readers = make()
    pixels = readers.read(saved(drawn(30, 40))).result(PATIENCE_S).pixels
    readers.close()
    del readers
    gc.collect()
    assert np.array_equal(pixels, np.asarray(drawn(30, 40)))


def test_memory_is_pinned_once_and_released_when_no_slot_is_held() -> None:
    """The hook gets the whole mapping; the function it returns is called after closing, with all slots
    back."""
    events: list[object] = []

    def pin(buffer: memoryview) -> Callable[[], None]:
        events.append((len(buffer), buffer.readonly))
        return lambda: events.append("released")

    memory = PixelMemory(40, 30, 3, pin)
    slot = memory.acquire()
    assert slot is not None
    pixels = memory.hand_out(slot)
    memory.close()
    assert events == [(3 * 4096, False)]
    del pixels
    assert events[1:] == ["released"]
    memory.close()
    assert len(events) == 2


@pytest.mark.slow
def test_no_descriptor_and_no_process_is_left(make: Callable[..., ProcessReaders], tmp_path: Path) -> None:
    """Readers that read, crashed and were closed leave no descriptor and no process."""
    children = psutil.Process().children()
    before = list(Path("/proc/self/fd").iterdir())
    for turn in range(3):
        readers = make(2)
        readers.read(GOOD).result(PATIENCE_S)
        (folder := tmp_path / str(turn)).mkdir()
        slow = SlowPicture(folder)
        crashing = slow.begin(readers)
        for pid in readers.pids:
            os.kill(pid, signal.SIGKILL)
        assert crashing.exception(PATIENCE_S)
        os.close(slow.end)
        readers.close()
    del readers
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
    assert psutil.Process().children() == children


def test_a_reader_that_can_not_start_is_named(
    make: Callable[..., ProcessReaders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that can't start is an EngineError, not the picture's fault, and nothing waits forever."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="exit status 1"):
        make().read(GOOD).result(PATIENCE_S)


def script(folder: Path, body: str) -> subprocess.Popen[str]:
    """Start a program without `if __name__ == "__main__"` in this folder."""
    (folder / "program.py").write_text(
        "from florence.images.preprocess import InputSize\n"
        "from florence.readers.processes import ProcessReaders\n"
        f"readers = ProcessReaders(InputSize(40, 30, 3), count=1)\n{textwrap.dedent(body)}"
    )
    return subprocess.Popen(
        [sys.executable, "program.py"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_plain_script_reads_and_ends(tmp_path: Path) -> None:
    """A script needs no main guard and may leave its readers open; they end with it."""
    (tmp_path / "a.png").write_bytes(GOOD)
    body = "print(readers.read('a.png').result().size, *readers.pids)"
    with script(tmp_path, body) as program:
        printed, errors = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, errors) == (0, "")
    *size, pid = printed.split()
    assert " ".join(size) == "(37, 23)"
    wait_until(lambda: gone(int(pid)))


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_readers_end_with_a_parent_that_is_killed(tmp_path: Path, busy: bool) -> None:
    """Readers end with a killed parent, idle or after their current picture."""
    slow = SlowPicture(tmp_path)
    body = "future = readers.read('picture.png')\n" if busy else ""
    with script(tmp_path, body + "print(*readers.pids, flush=True)\nimport time; time.sleep(600)") as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        end = os.open(slow.path, os.O_WRONLY) if busy else None
        program.kill()
    if end is not None:
        os.close(end)
    wait_until(lambda: gone(pid))


def gone(pid: int) -> bool:
    """Return whether the process has ended; a zombie counts as ended, since init may never read it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_reader_gets_no_secrets(
    make: Callable[..., ProcessReaders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader, which decodes untrusted bytes, does not get the environment's tokens."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    readers = make()
    assert readers.read(GOOD).result(PATIENCE_S)
    assert "HF_TOKEN" not in psutil.Process(readers.pids[0]).environ()


@pytest.mark.slow
def test_a_reader_stays_small(make: Callable[..., ProcessReaders]) -> None:
    """A reader stays below 150 MiB of private memory after large pictures, and loads neither numpy nor
    pydantic."""
    readers = make()
    data = saved(Image.new("RGB", (4000, 3000), "teal"), "JPEG")
    for _ in range(3):
        readers.read(data).result(PATIENCE_S)
    process = psutil.Process(readers.pids[0])
    assert process.memory_full_info().uss < 150 * MIB
    loaded = {Path(found.path).name for found in process.memory_maps()}
    assert not [name for name in loaded if "multiarray" in name or "pydantic" in name]
