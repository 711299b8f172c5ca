"""A device's memory and graphs: copies, page-locked pixels, captures that fail.

`pytest -m gpu` runs this on a CUDA device, a default run rehearses it on the CPU; see `test_gpu_engine.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from florence.engine.device.capture.graphs import (
    CapturedWork,
    CudaGraphCapturer,
    EagerCapturer,
    GraphCapturer,
    Replay,
    Work,
)
from florence.engine.device.memory import CudaMemory, DeviceMemory
from florence.readers.memory import PixelMemory

pytestmark = pytest.mark.filterwarnings("default")  # the installed versions may warn

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def memory_of(kind: str) -> DeviceMemory:
    """The memory of the device of this kind, made the thread's current one."""
    memory = CudaMemory(torch.device("cuda:0")) if kind == "cuda" else DeviceMemory()
    memory.activate()
    return memory


class Suspicious(EagerCapturer):
    """A capturer that refuses marked work, as CUDA refuses work that reads a value on the host."""

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Capture the work, unless it is marked."""
        if getattr(work, "reads", False):
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().capture(work)


def capturer_of(kind: str) -> GraphCapturer:
    """The device's own capturer, or on the CPU one that refuses marked work."""
    return CudaGraphCapturer(torch.device("cuda:0")) if kind == "cuda" else Suspicious()


@pytest.mark.parametrize("kind", DEVICES)
def test_copies_hold_their_values(kind: str) -> None:
    """A download gives the values from when it started, even if they change before it ends."""
    memory = memory_of(kind)
    values = torch.arange(1000)
    buffer = memory.upload(values).clone()
    before = memory.download(buffer)
    memory.store(values * 2, buffer)
    after = memory.download(buffer)
    memory.mark()()
    assert torch.equal(before(), values)
    assert torch.equal(after(), values * 2)


@pytest.mark.parametrize("kind", DEVICES)
def test_pictures_that_are_sent_together_arrive_before_the_work_on_them(kind: str) -> None:
    """The memory of sent pictures is not used again before the work on them is done, even if the host is
    far ahead."""
    memory = memory_of(kind)
    buffer = memory.upload(torch.zeros(3, 256, 256, 3, dtype=torch.uint8)).clone()
    arrived = []
    for number in range(40):
        pictures = [torch.full((256, 256, 3), number + each, dtype=torch.uint8) for each in range(3)]
        buffer.copy_(memory.send(pictures))
        arrived.append(memory.download(torch.stack([buffer.amin((1, 2, 3)), buffer.amax((1, 2, 3))])))
    for number, extremes in enumerate(arrived):
        assert extremes().tolist() == [[number, number + 1, number + 2]] * 2
    assert memory.send([torch.ones(2, 5)]).shape == (1, 2, 5)


@pytest.mark.parametrize("kind", DEVICES)
def test_pixels_are_read_from_the_memory_of_their_readers(kind: str) -> None:
    """The device reads pixels from the readers' memory, page-locked where possible; a slot is not used again
    before it has been read."""
    memory = memory_of(kind)
    pixels = PixelMemory(64, 64, 4, on_memory=memory.lock_pages)
    buffer = memory.upload(torch.zeros(64, 64, 64, 3, dtype=torch.uint8)).clone()
    for number, row in enumerate(buffer):
        slot = pixels.acquire()
        while slot is None:  # all are still being read
            memory.download(buffer[0, 0])()
            gc.collect()
            slot = pixels.acquire()
        picture = pixels.hand_out(slot)
        picture.fill(number)
        given = torch.from_numpy(picture)
        if kind == "cuda":
            assert given.is_pinned()
        memory.store(given, row)
        del given, picture
    memory.mark()()
    assert memory.download(buffer)().flatten(1).unique(dim=1).flatten().tolist() == list(range(64))
    memory.download(buffer[0, 0])()
    gc.collect()
    assert pixels.free == 4
    pixels.close()


def test_pixels_that_can_t_be_page_locked_leave_no_error_to_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed page lock is logged, and its CUDA error is cleared on the memory's own device, which may not
    be the thread's current one."""
    current, errors = ["cuda:0"], list[int]()

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(str(chosen))
        yield
        current.pop()

    def register(*_: int) -> int:
        assert current[-1] == "cuda:1"
        errors.append(801)
        return errors[-1]

    def launch(*_: int, device: torch.device) -> None:
        assert current[-1] == str(device) == "cuda:1"
        raise RuntimeError(f"CUDA error {errors.pop()}")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    monkeypatch.setattr(torch, "zeros", launch)
    assert CudaMemory(torch.device("cuda:1")).lock_pages(memoryview(bytearray(64))) is None
    assert "801" in caplog.text
    assert not errors


@pytest.mark.parametrize("kind", DEVICES)
def test_replays_read_their_buffers(kind: str) -> None:
    """A replay reads the values written to its buffers since the last replay."""
    memory = memory_of(kind)
    buffer = memory.upload(torch.zeros(4)).clone()
    work = CapturedWork("the work", lambda: [buffer * 2], [buffer], memory)
    work.warm_up()
    work.capture(capturer_of(kind))
    assert work.captured
    for number in range(3):
        work.load([torch.full((2,), float(number))])  # the others repeat the first
        (result,) = work.run()
        assert memory.download(result)().tolist() == [2.0 * number] * 4


@pytest.mark.parametrize("kind", DEVICES)
def test_work_that_can_t_be_captured_runs_and_other_work_still_is(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Work that reads a value on the host runs without capture; other work is still captured, and the
    thread's stream is restored."""
    memory, capturer = memory_of(kind), capturer_of(kind)
    buffer = memory.upload(torch.ones(3)).clone()
    stream = torch.cuda.current_stream() if kind == "cuda" else None

    def reading() -> list[Tensor]:
        return [buffer * buffer.sum().item()]

    reading.reads = True  # type: ignore[attr-defined]
    bad = CapturedWork("the reading work", reading, [buffer], memory)
    good = [CapturedWork("other work", lambda: [buffer + 1], [buffer], memory) for _ in range(2)]
    for work in (*good, bad):
        work.warm_up()
    good[0].capture(capturer)
    bad.capture(capturer)
    good[1].capture(capturer)
    assert [work.captured for work in (*good, bad)] == [True, True, False]
    assert caplog.text.count("the reading work can't be captured") == 1
    for _ in range(2):
        assert memory.download(bad.run()[0])().tolist() == [3.0] * 3
        for work in good:
            assert memory.download(work.run()[0])().tolist() == [2.0] * 3
    if kind == "cuda":
        assert torch.cuda.current_stream() == stream
