"""Which device and which dtype "auto" means here, and threads for a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from florence.errors import SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""Flags of processors that multiply bfloat16 faster than float32; elsewhere bfloat16 is many times slower."""


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
    """ "auto" (bfloat16 where the processor multiplies it natively, else float32), or one of `DTYPES` by
    name."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return torch.bfloat16 if has_native_bf16() else torch.float32
    if name not in DTYPES:
        raise SettingsError(f"dtype {name!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 natively; False where the system does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in BF16_FLAGS)
