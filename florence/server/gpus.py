"""How many GPUs CUDA shows to the workers, read from the driver: the supervisor does not load torch."""

from __future__ import annotations

import os


def count_gpus() -> int:
    """GPUs that CUDA shows to the workers; 0 without a driver."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return count_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), int(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def count_visible(visible: str | None, there: int) -> int:
    """How many of the machine's GPUs CUDA_VISIBLE_DEVICES leaves visible: CUDA reads indexes, and names such
    as GPU-... and MIG-..., up to the first index that no GPU has."""
    if visible is None:
        return there
    names = [name.strip() for name in visible.split(",")]
    known = [int(name) < there if name.isdecimal() else name.startswith(("GPU-", "MIG-")) for name in names]
    return [*known, False].index(False)
