"""Which stream of a device encodes run on: the steps' own, or one beside it.

Work on one stream runs in the order in which it was launched, so a step waits for the encodes before it. On a
second stream an encode begins after the steps launched before it, and no step waits for it: requests join the
steps once the host sees that their encode is done. Three rules keep the two streams apart:

- graphs of encodes have their own memory pool, since graphs of one pool overwrite each other's memory;
- tensors that only encodes use are allocated and freed on the second stream, and PyTorch never reuses memory
  across streams; buffers that were allocated on the first stream are kept (`hold`) until encodes have used
  them;
- an encode writes only to slots that no step reads; `SearchState.start` is launched on the steps' stream when
  the encode is done.

Knows streams and buffers; knows nothing about pictures or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from florence.engine.device.capture.graphs import CudaGraphCapturer, GraphCapturer


class EncodeStream:
    """The steps' own stream. `beside`: whether encodes run beside steps. `capturer`: for encodes; None: that
    of the steps."""

    beside = False
    capturer: GraphCapturer | None = None

    def sending(self) -> AbstractContextManager[None]:
        """Within this context the calling thread launches work of an encode."""
        return nullcontext()

    def done(self) -> bool:
        """Whether all launched work of encodes is done, or will be before a step that is launched now."""
        return True

    def wait(self) -> None:
        """Wait until all launched work of encodes is done."""

    def hold(self, buffers: Iterable[Tensor]) -> None:
        """Let no other tensor reuse the memory of these buffers, once they are freed, until encodes have used
        them."""


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
        # Steps that were launched before may still read a slot that has been given back.
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
