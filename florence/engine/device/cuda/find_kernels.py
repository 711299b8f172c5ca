"""Whether a CUDA device can use the Triton kernels. Imports them only where a device may be able to run
them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from florence.engine.device.beams.search import SearchStep
from florence.engine.device.cuda.kernel import CudaKernel
from florence.model.adapters.lowrank import LowRankKernels
from florence.model.attention import AttentionBackend
from florence.model.config import VisionConfig
from florence.model.encoding import EncodeBackend
from florence.model.kernels import fp8
from florence.model.kernels.fp8 import Fp8Products
from florence.types.bounds import MAX_BEAMS

log = logging.getLogger(__name__)

HEAD_DIMS = 16, 32, 64, 128
"""Sizes of attention heads and channel groups that the kernels support: they fill the tiles of tensor
cores."""

OLDEST = 8, 0
"""The oldest compute capability that the kernels are compiled for in the tests."""

BEAMS = 1, 3, MAX_BEAMS
"""The kernels are checked for these numbers of beams in a step; they are compiled for each."""

COMPILERS = "gcc", "clang"
"""C compilers: triton needs one to build its launchers; `CC` in the environment names another."""


def find_kernels(
    device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[AttentionBackend, SearchStep] | None:
    """Attention and search by the kernels for a CUDA device; None, and a warning, where they can't be used:
    without triton, on an old card, with other heads, or where one fails or differs from its definition."""
    if not can_run(device, "decode steps", [head_dim]):
        return None
    from florence.engine.device.cuda.kernels import STEP_KERNELS

    kernels = [kernel.fitted(beams=beams, head_dim=head_dim) for kernel in STEP_KERNELS for beams in BEAMS]
    return load_kernels() if agree(kernels, device, dtype, "decode steps") else None


def find_encode_kernels(
    device: torch.device, dtype: torch.dtype, vision: VisionConfig
) -> EncodeBackend | None:
    """An encode's layers by the kernels for a CUDA device; None, and a warning, as `find_kernels` has it."""
    stages = zip(vision.dims, vision.heads, vision.groups, strict=True)
    sizes = {(dim, dim // number): None for dim, *numbers in stages for number in numbers}
    if not can_run(device, "encodes", [head_dim for _, head_dim in sizes]):
        return None
    from florence.engine.device.cuda.encode_kernels import ENCODE_KERNELS

    kernels = [
        kernel.fitted(dim=dim, head_dim=head_dim, window=vision.window)
        for kernel in ENCODE_KERNELS
        for dim, head_dim in sizes
    ]
    return load_encode_kernels() if agree(kernels, device, dtype, "encodes") else None


def can_run(device: torch.device, what: str, head_dims: Sequence[int]) -> bool:
    """Whether there is triton, and the kernels support the card and the model's head sizes; if not, a
    warning."""
    if not has_triton(what):
        return False
    if torch.cuda.get_device_capability(device) < OLDEST or not set(head_dims) <= set(HEAD_DIMS):
        log.warning("no kernels for this GPU or this model: %s use PyTorch's operations", what)
        return False
    return True


def has_triton(what: str) -> bool:
    """Whether triton can compile kernels here; if not, a warning says what is missing."""
    if find_spec("triton") is None:
        missing = "triton is not installed"
    elif not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        missing = "triton needs a C compiler, and neither gcc nor clang is installed"
    else:
        return True
    log.warning("%s: %s use PyTorch's operations, which is slower", missing, what)
    return False


def agree(kernels: Sequence[CudaKernel[Any]], device: torch.device, dtype: torch.dtype, what: str) -> bool:
    """Whether all these kernels agree with their definitions on the device; if not, a warning."""
    try:
        with torch.cuda.device(device), torch.inference_mode():
            for kernel in kernels:
                kernel.check(device, dtype)
    except Exception as error:
        log.warning("%s use PyTorch's operations, since a kernel failed", what, exc_info=error)
        return False
    return True


def load_kernels() -> tuple[AttentionBackend, SearchStep]:
    """Attention and search by the kernels, unchecked. Needs triton, and no GPU."""
    from florence.engine.device.cuda import search as cuda_search
    from florence.model.cuda.attention import CUDA

    return CUDA, cuda_search.advance


def load_encode_kernels() -> EncodeBackend:
    """An encode's layers by the kernels, unchecked. Needs triton, and no GPU."""
    from florence.model.cuda.encoding import CudaEncode

    return CudaEncode()


def load_low_rank() -> LowRankKernels:
    """The kernels for adapters beside the weights, unchecked. Needs triton, and no GPU."""
    from florence.model.kernels.cuda import low_rank

    return LowRankKernels(low_rank.shrink, low_rank.expand)


def load_fp8() -> Fp8Products:
    """Products in fp8 whose rows the kernel quantises, unchecked. Needs triton, and no GPU."""
    from florence.model.kernels.cuda.quantize import quantize_rows

    return Fp8Products(quantize_rows, fp8.multiply)
