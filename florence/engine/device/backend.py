"""All choices about running steps that depend on the device: `Backend.for_device` makes them, everything else
gets a `Backend` and asks it.

A kernel for another device goes here: an `AttentionBackend` for it, returned by `for_device`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from florence.engine.config import DEFAULT_ENCODE_BUDGET_MS, CpuKernels, CudaKernels, EncodeStreamChoice
from florence.engine.device.beams.search import SearchStep, advance
from florence.engine.device.capture.graphs import CudaGraphCapturer, GraphCapturer
from florence.engine.device.cuda.find_kernels import find_encode_kernels, find_kernels
from florence.engine.device.encode.stream import CudaEncodeStream, EncodeStream
from florence.engine.device.memory import CudaMemory, DeviceMemory
from florence.model.attention import AttentionBackend, DenseAttention, KernelAttention
from florence.model.config import VisionConfig
from florence.model.encoding import PLAIN, CompiledEncode, EncodeBackend
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available


@dataclass(frozen=True, slots=True)
class Backend:
    """How steps run on a device. The defaults are right on any CPU: PyTorch's operations, step by step.

    `attention`: computes a step's attentions. `search`: lets the searches choose their next tokens. `encode`:
    computes the layers of an encode. `memory`: copies to and from the device. `capturer`: captures steps and
    encodes of a few fixed shapes as graphs; None runs each shape as it comes. `delayed_readback`: read what a
    step decided only after the next step has been sent, so that the device never waits for the host; a
    finished request then stays in the batch for one extra step. `encode_stream`: where encodes run, unless a
    trial at the start finds that they are better on the steps' own; `encode_budget_s`: seconds that a step
    may take in that trial, None for no trial. `pins_attention`: choose among PyTorch's fused attentions at
    the start, by trying them. `free_host_reads`: whether the host may read a value of the device between
    operations at no cost, to skip work. `lazy_pages`: whether memory that was never written costs nothing.
    """

    attention: AttentionBackend = field(default_factory=DenseAttention)
    search: SearchStep = advance
    encode: EncodeBackend = PLAIN
    memory: DeviceMemory = field(default_factory=DeviceMemory)
    capturer: GraphCapturer | None = None
    delayed_readback: bool = False
    encode_stream: EncodeStream = field(default_factory=EncodeStream)
    encode_budget_s: float | None = None
    pins_attention: bool = False
    free_host_reads: bool = True
    lazy_pages: bool = True

    @classmethod
    def for_device(
        cls,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        *,
        cpu_kernels: CpuKernels = "auto",
        cuda_kernels: CudaKernels = "auto",
        vision: VisionConfig | None = None,
        compile_tower: bool = False,
        encode_stream: EncodeStreamChoice = "off",
        encode_budget_ms: float = DEFAULT_ENCODE_BUDGET_MS,
        threads: int | None = None,
    ) -> Backend:
        """The backend for a model of `dtype` whose decoder has heads of `head_dim`. `vision`: sizes of its
        tower; without them no kernel is used for encodes. `compile_tower`: by `torch.compile`, on a GPU.
        `encode_stream`: whether encodes run beside steps, on a GPU; "auto": it is tried, with this encode
        budget. `threads`: of the CPU kernels, PyTorch's number where it is None."""
        if device.type == "cuda":
            kernels = find_kernels(device, dtype, head_dim) if cuda_kernels == "auto" else None
            attention, search = kernels or (DenseAttention(), advance)
            encode: EncodeBackend | None = CompiledEncode() if compile_tower else None
            if encode is None and vision is not None and cuda_kernels == "auto":
                encode = find_encode_kernels(device, dtype, vision)
            return cls(
                attention,
                search,
                encode or PLAIN,
                memory=CudaMemory(device),
                # Beside an encode, which has work for the whole device, a step's kernels come first.
                capturer=CudaGraphCapturer(device)
                if encode_stream == "off"
                else CudaGraphCapturer(device, -1),
                delayed_readback=True,
                encode_stream=EncodeStream() if encode_stream == "off" else CudaEncodeStream(device),
                encode_budget_s=encode_budget_ms / 1000 if encode_stream == "auto" else None,
                pins_attention=True,
                free_host_reads=False,
                lazy_pages=False,
            )
        if cpu_kernels == "off" or not available(dtype):
            return cls()
        return cls(attention=KernelAttention(CpuAttention(dtype, head_dim, threads)))
