"""All choices about steps, encodes and products that depend on the device: `Backend.for_device` makes them,
and all other modules read them from the `Backend` that they are given.

To support another device, write an `AttentionBackend` for it and return it from `for_device`; if its linear
layers have kernels too, also a `ProductBackend`, for `products_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from florence.engine.config import EngineConfig
from florence.engine.device.beams.search import SearchStep, advance
from florence.engine.device.capture.graphs import CudaGraphCapturer, GraphCapturer
from florence.engine.device.cuda.find_kernels import find_encode_kernels, find_kernels
from florence.engine.device.cuda.products import CudaProducts
from florence.engine.device.encode.stream import CudaEncodeStream, EncodeStream
from florence.engine.device.memory import CudaMemory, DeviceMemory
from florence.model.attention import DENSE, DENSE_ON_GPU, AttentionBackend, by_kernel
from florence.model.config import VisionConfig
from florence.model.encoding import PLAIN, CompiledEncode, EncodeBackend
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available
from florence.model.products import CpuProducts, ProductBackend


@dataclass(frozen=True, slots=True)
class Backend:
    """How steps and encodes run on a device. The defaults work on any CPU: PyTorch's operations, no graphs.

    `attention`: computes a step's attentions. `search`: chooses each search's next tokens. `encode`: computes
    the layers of an encode. `products`: how linear layers compute. `memory`: copies to and from the device.
    `capturer`: captures steps and encodes of a few fixed shapes as graphs; None runs each shape as it comes.
    `delayed_readback`: read what a step decided only after the next step has been sent, so that the device
    never waits for the host; a finished request then stays in the batch for one extra step. `encode_stream`:
    the stream of encodes, unless a trial at the start decides for the steps' own; `encode_budget_s`: seconds
    that a step may take in that trial, None for no trial. `pins_attention`: whether to choose among PyTorch's
    fused attentions at the start, by trying them. `free_host_reads`: whether the host can read a tensor's
    values at no cost between operations, so that it may skip work. `lazy_pages`: whether memory that was
    never written takes no space.
    """

    attention: AttentionBackend = DENSE
    search: SearchStep = advance
    encode: EncodeBackend = PLAIN
    products: ProductBackend = field(default_factory=ProductBackend)
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
        vision: VisionConfig | None = None,
        config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> Backend:
        """The backend for a model of `dtype` whose decoder has heads of `head_dim`. `vision`: sizes of its
        tower; None: no kernels for encodes. `config`: which kernels may be used, by how many threads, and
        where encodes run."""
        if device.type == "cuda":
            kernels = find_kernels(device, dtype, head_dim) if config.cuda_kernels == "auto" else None
            attention, search = kernels or (DENSE_ON_GPU, advance)
            encode: EncodeBackend | None = CompiledEncode() if config.compile_tower else None
            if encode is None and vision is not None and config.cuda_kernels == "auto":
                encode = find_encode_kernels(device, dtype, vision)
            one_stream = config.encode_stream == "off"
            return cls(
                attention,
                search,
                encode or PLAIN,
                products_for(device, dtype, config),
                memory=CudaMemory(device),
                # An encode can occupy the whole device, so a step's kernels get the higher priority.
                capturer=CudaGraphCapturer(device, 0 if one_stream else -1),
                delayed_readback=True,
                encode_stream=EncodeStream() if one_stream else CudaEncodeStream(device),
                encode_budget_s=config.encode_budget_ms / 1000 if config.encode_stream == "auto" else None,
                pins_attention=True,
                free_host_reads=False,
                lazy_pages=False,
            )
        products = products_for(device, dtype, config)
        # The attention kernel's vectors of bfloat16 are pairs.
        if config.cpu_kernels == "off" or head_dim % 2 or not available(dtype):
            return cls(products=products)
        attention = by_kernel(CpuAttention(dtype, head_dim, config.threads))
        return cls(attention, products=products)


def products_for(
    device: torch.device,
    dtype: torch.dtype,
    config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
) -> ProductBackend:
    """The products of `Backend.for_device` alone, for a model that is not served."""
    if device.type == "cuda":
        return CudaProducts(device, dtype, config.cuda_kernels)
    return ProductBackend() if config.cpu_kernels == "off" else CpuProducts(dtype, config.threads)
