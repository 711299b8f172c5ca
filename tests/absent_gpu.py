"""A simulated GPU: its tensors are PyTorch's fake tensors, with shapes and dtypes but without values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from florence.engine.device.capture.graphs import Replay, Work
from florence.engine.device.memory import DeviceMemory, Download
from florence.model.florence2 import Florence2Model


class OnTheDevice(TorchDispatchMode):
    """Check that every input and output of an operation is a tensor on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device.type != "cuda":
                raise AssertionError(f"{func} has a tensor of the host: {tuple(leaf.shape)}")
        self.operations.add(str(func))
        return result


class Capture:
    """Run work that a CUDA graph would capture, and refuse operations that a graph can't hold."""

    def __init__(self) -> None:
        self.captured = 0
        self.operations: set[str] = set()

    def capture(self, work: Work) -> tuple[Replay, Sequence[Tensor]]:
        """Run the work once and record its operations."""
        # Inference mode is off: with it, a composite operation hides the operations that it consists of.
        with torch.inference_mode(False), torch.no_grad(), OnTheDevice() as watched:
            results = work()
        self.captured += 1
        self.operations |= watched.operations
        return lambda: None, results

    def reset(self) -> None:
        """Do nothing."""
        pass


class AbsentMemory(DeviceMemory):
    """Memory of the simulated GPU: uploads give fake tensors, and a download fails."""

    def upload(self, values: Tensor) -> Tensor:
        """A fake tensor of the values' shape."""
        return torch.empty(values.shape, dtype=values.dtype, device="cuda")

    def store(self, values: Tensor, buffer: Tensor) -> None:
        """Check the shapes."""
        assert values.shape == buffer.shape

    def download(self, values: Tensor) -> Download:
        """A download that fails when it is waited for."""

        def never() -> Tensor:
            raise AssertionError("the host waits for a copy")

        return never


def move(model: Florence2Model, dtype: torch.dtype) -> None:
    """Replace the model's parameters and buffers by fake tensors on the GPU."""
    # Public methods would copy values, which fake tensors do not have.
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            for name, value in owned.items():
                if value is not None:
                    kind = dtype if value.is_floating_point() else value.dtype
                    moved = torch.empty(value.shape, dtype=kind, device="cuda")
                    owned[name] = torch.nn.Parameter(moved) if owned is module._parameters else moved
