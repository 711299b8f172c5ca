"""A device's memory: copies to and from the host, and waiting for the device.

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
    """Memory operations of a device; this class is for a CPU, where each is done at once. `upload` and
    `store` accept tensors of the host and of the device."""

    def activate(self) -> None:
        """Make this the current device of the calling thread."""

    def upload(self, values: Tensor) -> Tensor:
        """`values` on the device; the host does not wait for the copy."""
        return values

    def send(self, values: Sequence[Tensor]) -> Tensor:
        """Host tensors of one shape as one tensor on the device, [values, ...]. The copy runs beside the work
        launched so far; work launched later waits for it."""
        sent = [self.upload(each) for each in values]
        return sent[0][None] if len(sent) == 1 else torch.stack(sent)

    def store(self, values: Tensor, buffer: Tensor) -> None:
        """Write `values` into `buffer`, a tensor of the device with the same shape; the host does not
        wait."""
        buffer.copy_(values)

    def download(self, values: Tensor) -> Download:
        """Start to copy the device's `values`, as they are after the work launched so far, to the host."""
        copy = values.clone()
        return lambda: copy

    def mark(self) -> Wait:
        """A function that waits for the work launched so far, and for nothing launched later."""
        return lambda: None

    def free_bytes(self) -> int | None:
        """Free bytes of the device's memory; None on a CPU, where no budget is kept."""
        return None

    def release(self) -> None:
        """Return cached free memory to the device, so that it can be allocated for other buffers."""

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        """Page-lock this host memory, so that the device can copy from it asynchronously. Returns a function
        that undoes this, or None where the memory was not locked."""
        return None


class CudaMemory(DeviceMemory):
    """Memory of a CUDA device.

    `exclusive`: held during each graph capture and whenever cached memory is freed: in one process torch
    captures one graph at a time, and must not free memory meanwhile.
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
        sent.record_stream(current)  # so that its memory is not reused before `current` has read it
        return sent

    def store(self, values: Tensor, buffer: Tensor) -> None:
        self._sent(values, lambda pinned: buffer.copy_(pinned, non_blocking=True))

    def _sent(self, values: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
        """The result of `copy`, called with page-locked memory if `values` are on the host. Memory that torch
        did not lock itself, such as pixels, is kept alive until it has been read: its owner would reuse
        it."""
        if not values.is_cpu:
            return copy(values)
        pinned = values.pin_memory()  # the same tensor if it is page-locked already
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
        self.release()  # memory that torch caches is free too
        return int(torch.cuda.mem_get_info(self._device)[0])

    def release(self) -> None:
        with self.exclusive:
            torch.cuda.empty_cache()

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
        with torch.cuda.device(self._device):  # any thread may call this; no other device is initialised
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            failure = int(runtime.cudaHostRegister(address, buffer.nbytes, 0))
            if failure:
                log.warning("pixels can't be page-locked (CUDA error %d): they are copied once more", failure)
                self._forget_error()
                return None
        return lambda: runtime.cudaHostUnregister(address)

    def _forget_error(self) -> None:
        """Clear the error of the last call, which CUDA would report again at the next launch of a kernel."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)
