"""Chooses device and dtype for "auto", and makes the process-wide settings that suit them."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

import torch

from florence.errors import SettingsError
from florence.model.kernels.fp8 import can_multiply
from florence.model.kernels.int8 import can_quantize
from florence.types.precision import PRECISIONS

CPUINFO = Path("/proc/cpuinfo")

INT8 = "int8"
"""A precision besides the dtypes: linear layers multiply in int8, everything else has the dtype of "auto"."""

FP8 = "fp8"
"""A precision besides the dtypes: some layers multiply in fp8 (`quantized.py`), everything else is in
bfloat16."""

QUANTIZED = INT8, FP8
"""The precisions that quantise weights."""

VNNI_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""CPU flags for instructions that multiply and accumulate bytes without overflow."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MALLOC_OPTIONS = {  # glibc's variable -> number of the mallopt option (malloc.h), and its value
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # keep free memory at the end of the heap
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**31 - 1),  # take large blocks from the heap too
    "MALLOC_ARENA_MAX": (-8, 1),  # one heap for all threads: arenas of threads can't hold large blocks
}

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "1"}
"""Capacity of the caches of prepared products in oneDNN and PyTorch: five products for each number of rows of
up to 16 requests with three beams, and those of the latest dozen prompt lengths."""


def pick_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:<n>".

    Raises `SettingsError` for an unknown name or a missing device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise SettingsError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:<n>")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """One of `DTYPES` by name, or "auto": on a GPU bfloat16, or float16 where it has none; on a CPU bfloat16
    where the processor multiplies it faster than float32 (`has_fast_bf16`), else float32.

    "int8" gives the dtype of "auto" where linear layers can be quantised (`quantized.py`), "fp8" bfloat16
    where products in fp8 can be computed or emulated. Raises `SettingsError` where they can't, and for an
    unknown name.
    """
    if name == INT8:
        if device.type != "cpu" or not (can_quantize() and has_vnni()):
            raise SettingsError("dtype 'int8' needs a CPU with VNNI and a PyTorch with oneDNN's operators")
        name = "auto"
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name == FP8:
        if device.type == "cuda" and not can_multiply(device):
            raise SettingsError(
                "dtype 'fp8' needs an NVIDIA GPU of compute capability 8.9 (Ada, Hopper) or newer"
            )
        name = "bfloat16"
    if name not in DTYPES:
        raise SettingsError(f"dtype {name!r} is not known; use {', '.join(PRECISIONS)}")
    return DTYPES[name]


def has_fast_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; False where the system does not say.

    True with AMX, and with AVX512-BF16 on AMD. On Intel without AMX (or where a virtual machine hides it),
    bfloat16 has half the rate of float32; without either instruction set it is many times slower.
    """
    facts = _read_processor(cpuinfo)
    flags = facts.get("flags", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == ["AuthenticAMD"])


def has_vnni(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU has instructions for products of bytes (VNNI); False where the system does not say."""
    flags = _read_processor(cpuinfo).get("flags", [])
    return any(flag in flags for flag in VNNI_FLAGS)


def keep_full_precision(device: torch.device, dtype: torch.dtype) -> None:
    """On a GPU, for the whole process: sum products in float32, and turn TF32 off for a model in float32.

    By default a half-precision product that is split over blocks (split-K) rounds partial sums to half
    precision, and cuDNN rounds the inputs of float32 convolutions to TF32 (ten bits of mantissa). float32
    matrix products don't use TF32 by default; this is set explicitly all the same.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if dtype is torch.float32:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # set at import
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def suit_process(device: torch.device) -> None:
    """On a CPU, for the whole process: `keep_freed_memory` and `bound_kernel_caches`."""
    if device.type == "cpu":
        keep_freed_memory()
        bound_kernel_caches()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensors, in the whole process.

    By default glibc returns each large block to the system, which zeroes every page before it is used again:
    writing a tensor of 150 MB then takes four times as long. The process's memory stays at its peak.
    glibc's own variables take precedence.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for variable, (option, value) in MALLOC_OPTIONS.items():
        if variable not in os.environ:
            mallopt(option, value)


def bound_kernel_caches() -> None:
    """Bound oneDNN's cache of prepared products; call it before oneDNN has computed any.

    oneDNN caches about half a megabyte for each shape, up to 1,024 shapes, and so does PyTorch: half a
    gigabyte after as many prompt lengths. Variables set in the environment take precedence.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)


def _read_processor(cpuinfo: Path) -> dict[str, list[str]]:
    """The "key : value" lines of the first processor, values split into words."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    return {key.strip(): value.split() for key, _, value in pairs}
