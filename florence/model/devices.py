"""Which device and which dtype "auto" means here, and what the process has to set for them."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

import torch
from torch import Tensor

from florence.errors import SettingsError
from florence.model.kernels.int8 import can_quantize

CPUINFO = Path("/proc/cpuinfo")

INT8 = "int8"
"""No dtype, but a choice beside them: linear layers multiply in int8, everything else is as "auto" says."""

VNNI_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Flags of processors that multiply and add bytes in one instruction, without overflow on the way."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MALLOC_OPTIONS = {  # mallopt's number of an option (malloc.h) -> value
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: keep what is free at the heap's end
    -3: 2**31 - 1,  # M_MMAP_THRESHOLD: take large blocks from the heap too
    -8: 1,  # M_ARENA_MAX: one heap for all threads, since those of threads can't hold large blocks
}


KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "1"}
"""Products that oneDNN, and PyTorch on the way to it, remember how to compute. Room for five of each number
of rows that up to 16 requests of three beams have, and for those of the latest dozen lengths of prompts."""


def pick_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:<n>".

    Raises `SettingsError` for a name that is unknown or a device that is not there.
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

    "int8" is "auto" where linear layers can be quantised (`packing.quantize`), and refused elsewhere.
    """
    if name == INT8:
        if not (can_quantize(device) and has_vnni()):
            raise SettingsError("dtype 'int8' needs a CPU with VNNI and a PyTorch with oneDNN's operators")
        name = "auto"
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name not in DTYPES:
        raise SettingsError(f"dtype {name!r} is not known; use auto, {', '.join([*DTYPES, INT8])}")
    return DTYPES[name]


def has_fast_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; False where the system does not say.

    AMX does, on any processor, and so does AVX512-BF16 on AMD's. Intel's, where AMX is missing or hidden by a
    virtual machine, has half the rate of its float32, and a processor with neither is many times slower.
    """
    facts = _read_processor(cpuinfo)
    flags = facts.get("flags", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == ["AuthenticAMD"])


def has_vnni(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU has instructions for products of bytes; False where the system does not say."""
    flags = _read_processor(cpuinfo).get("flags", [])
    return any(flag in flags for flag in VNNI_FLAGS)


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """`values`, in memory that a GPU reads by itself if they come from the host and go to one: with
    `non_blocking` the host does not wait for such a copy. PyTorch keeps the memory until it is read."""
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


def keep_full_float32(device: torch.device, dtype: torch.dtype) -> None:
    """Let a model in float32 compute in float32 on a GPU; a setting of the whole process.

    By default cuDNN rounds what its convolutions multiply to the ten bits of TF32. Products of matrices do
    not by default, and it is said here that they shall not.
    """
    if device.type == "cuda" and dtype is torch.float32:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at import
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for the next tensors; a setting of glibc.

    By default glibc returns each large block to the kernel, which hands it out again page by page, zeroed: a
    tensor of 150 MB costs four times as much to write. It holds for the whole process, whose memory stays at
    the highest need so far.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in MALLOC_OPTIONS.items():
        mallopt(option, value)


def bound_kernel_caches() -> None:
    """Let oneDNN remember how to compute fewer products; to be called before it has computed any.

    For each shape it keeps what it made, about half a megabyte for a product, up to 1,024 of them, and
    PyTorch holds as many: half a gigabyte once so many lengths have come. Variables of the environment take
    precedence.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)


def _read_processor(cpuinfo: Path) -> dict[str, list[str]]:
    """The first processor's "key : value" lines, values in words; all processors of a machine are alike."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    return {key.strip(): value.split() for key, _, value in pairs}
