"""Which stream of a device encodes run on: the steps' own, or one beside it.

On one stream work is done in the order in which it was sent, so a step waits for the encodes before it. On a
second stream an encode begins after the steps that were sent before it, and no step waits for it: requests
join the steps when the host has seen that their encode is done. Three things keep the two apart:

- graphs of encodes have a memory pool of their own, since graphs of one pool overwrite each other's memory;
- tensors that only encodes use are made and freed on the second stream, and PyTorch gives the memory of one
  stream to no other; buffers that were made on the first are held (`hold`) until encodes have used them;
- what steps read of an encode is written to slots that no step has, or by `SearchState.start`, which is sent
  on the steps' stream when the encode is done.

Knows streams and buffers; knows nothing about pictures or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from florence.engine.device.capture.graphs import CudaGraphCapturer, GraphCapturer


class EncodeStream:
    """The steps' own stream. `beside`: whether encodes run beside steps. `capturer`: of encodes, where they
    need another than steps."""

    beside = False
    capturer: GraphCapturer | None = None

    def sending(self) -> AbstractContextManager[None]:
        """While this is entered, the calling thread sends parts of an encode."""
        return nullcontext()

    def done(self) -> bool:
        """Whether the device has done all parts that were sent, or will have before it takes a step that is
        sent now."""
        return True

    def wait(self) -> None:
        """Wait until the device has done all parts that were sent."""

    def hold(self, buffers: Iterable[Tensor]) -> None:
        """Keep the memory of these buffers, once they are dropped, until encodes have used them."""


class CudaEncodeStream(EncodeStream):
    """A second stream of a CUDA device."""

    beside = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.capturer = CudaGraphCapturer(device)

    @contextmanager
    def sending(self) -> Iterator[None]:
        # A slot that is given back may be read by steps that are on their way.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._sent.record(self._stream)

    def done(self) -> bool:
        return bool(self._sent.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._sent.synchronize()

    def hold(self, buffers: Iterable[Tensor]) -> None:
        for buffer in buffers:
            buffer.record_stream(self._stream)
