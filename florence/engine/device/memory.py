"""Memory of a device: copies to and from the host, and waiting for the device.

On a GPU copies are asynchronous, from and to page-locked host memory; PyTorch keeps such memory until the
device has read or written it. Knows tensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

    def store(self, values: Tensor, buffer: Tensor) -> None:
        """Write `values` into `buffer`, a tensor of the device with the same shape; the host does not
        wait."""
        buffer.copy_(values)

    def download(self, values: Tensor) -> Download:
        """Start to copy the device's `values`, as they are after the work sent so far, to the host."""
        copy = values.clone()
        return lambda: copy

    def synchronize(self) -> None:
        """Wait until the device has done all work sent so far."""

    def release(self) -> None:
        """Give freed memory back, so that other buffers can take its place."""

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        """Let the device read this host memory by itself, where it can; what undoes that."""
        return None


class CudaMemory(DeviceMemory):
    """A CUDA device's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def activate(self) -> None:
        torch.cuda.set_device(self._device)

    def upload(self, values: Tensor) -> Tensor:
        return _pinned(values).to(self._device, non_blocking=True)

    def store(self, values: Tensor, buffer: Tensor) -> None:
        buffer.copy_(_pinned(values), non_blocking=True)

    def download(self, values: Tensor) -> Download:
        arriving = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        arriving.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()

        def arrived() -> Tensor:
            event.synchronize()
            return arriving

        return arrived

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def lock_pages(self, buffer: memoryview) -> Callable[[], None] | None:
        address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        failure = int(runtime.cudaHostRegister(address, buffer.nbytes, 0))
        if failure:
            log.warning("pixels can't be page-locked (CUDA error %d): they are copied once more", failure)
            return None
        return lambda: runtime.cudaHostUnregister(address)


def _pinned(values: Tensor) -> Tensor:
    """`values` in page-locked memory if they are the host's."""
    return values.pin_memory() if values.is_cpu else values
