"""Memory of a device: copies to and from the host, and waiting for the device.

On a GPU copies are asynchronous, from and to page-locked host memory; PyTorch keeps such memory until the
device has read or written it. Knows tensors only.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor

from florence.engine.sequence import Wait

log = logging.getLogger(__name__)

Download = Callable[[], Tensor]
"""Waits for a copy to the host and returns it."""


class DeviceMemory:
    """What a device does with memory: here the CPU's, where everything is there at once. `upload` and `store`
    accept tensors of the host and of the device."""

    def activate(self) -> None:
        """Make this the current device of the calling thread."""

    def upload(self, values: Tensor) -> Tensor:
        """`values` on the device; the host does not wait for the copy."""
        return values

    def send(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors of the host, of one shape, as one of the device: [values, ...]. They are copied beside the
        work sent so far; work that is sent from now on waits for them."""
        sent = [self.upload(each) for each in values]
        return sent[0][None] if len(sent) == 1 else torch.stack(sent)

    def store(self, values: Tensor, buffer: Tensor) -> None:
        """Write `values` into `buffer`, a tensor of the device with the same shape; the host does not
        wait."""
        buffer.copy_(values)

    def download(self, values: Tensor) -> Download:
        """Start to copy the device's `values`, as they are after the work sent so far, to the host."""
        copy = values.clone()
        return lambda: copy

    def mark(self) -> Wait:
        """What waits for the work sent so far, and for nothing that is sent later."""
        return lambda: None

    def free_bytes(self) -> int | None:
        """Memory of the device that is free; None where nothing is to be shared out."""
        return None

    def release(self) -> None:
        """Give freed memory back, so that other buffers can take its place."""

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        """Let the device read this host memory by itself, where it can; what undoes that."""
        return None


class CudaMemory(DeviceMemory):
    """A CUDA device's.

    `exclusive`: torch captures one graph at a time in a process, and may not free memory meanwhile.
    """

    exclusive: ClassVar = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: torch.cuda.Stream | None = None  # of `send`
        self._copying: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def activate(self) -> None:
        torch.cuda.set_device(self._device)

    def upload(self, values: Tensor) -> Tensor:
        return self._sent(values, lambda pinned: pinned.to(self._device, non_blocking=True))

    def send(self, values: Sequence[Tensor]) -> Tensor:
        copies = self._copies = self._copies or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(copies):
            shape, dtype = values[0].shape, values[0].dtype
            sent = torch.empty(len(values), *shape, dtype=dtype, device=self._device)
            for each, row in zip(values, sent, strict=True):
                self.store(each, row)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(copies)
        sent.record_stream(current)  # its memory is not the next one's before that has read it
        return sent

    def store(self, values: Tensor, buffer: Tensor) -> None:
        self._sent(values, lambda pinned: buffer.copy_(pinned, non_blocking=True))

    def _sent(self, values: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
        """The result of the copy, of page-locked memory if `values` are the host's. Memory that torch has not
        locked itself, as that of pixels, is held until it has been read: its owner would use it again."""
        if not values.is_cpu:
            return copy(values)
        pinned = values.pin_memory()  # itself where it is page-locked already
        result = copy(pinned)
        if pinned.data_ptr() == values.data_ptr():
            self._copying.append((self._event(), pinned))
        return result

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def download(self, values: Tensor) -> Download:
        arriving = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        arriving.copy_(values, non_blocking=True)
        event = self._event()
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call]
            self._copying.popleft()

        def arrived() -> Tensor:
            event.synchronize()
            return arriving

        return arrived

    def mark(self) -> Wait:
        return self._event().synchronize

    def free_bytes(self) -> int | None:
        self.release()  # what torch keeps is free too
        return int(torch.cuda.mem_get_info(self._device)[0])

    def release(self) -> None:
        with self.exclusive:
            torch.cuda.empty_cache()

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
        with torch.cuda.device(self._device):  # any thread calls this, and another device is not to be woken
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            failure = int(runtime.cudaHostRegister(address, buffer.nbytes, 0))
            if failure:
                log.warning("pixels can't be page-locked (CUDA error %d): they are copied once more", failure)
                self._forget_error()
                return None
        return lambda: runtime.cudaHostUnregister(address)

    def _forget_error(self) -> None:
        """CUDA tells an error of one call once more at the next launch of a kernel, and then no more."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)
