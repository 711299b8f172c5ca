"""Runs the project's kernels on the OpenMP threads that PyTorch computes with.

Both share one team of threads, so that they never compete for cores.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

HEAD = ("next_task", "next_thread", "faults", "address", "scratch", "scratch_bytes")
"""The first fields of each job, all int64: three counters, from zero, that its threads increment; the job's
own address; the address of working memory, and its size for each thread in bytes."""

NUMBER_BYTES = 8

NEXT_TASK, NEXT_THREAD, FAULTS = (NUMBER_BYTES * place for place in range(3))


class OpenMPTeam:
    """`threads` threads of the OpenMP runtime that PyTorch has loaded; None: as many as PyTorch uses. Raises
    `ValueError` where this PyTorch has no such runtime."""

    def __init__(self, threads: int | None) -> None:
        parallel = _parallel()
        if parallel is None:
            raise ValueError("this PyTorch has no OpenMP threads that other code can use")
        self._parallel = parallel
        self.threads = threads or torch.get_num_threads()

    def run(self, kernel: int, scratch_bytes: int, job: tuple[int, ...]) -> int:
        """Call the C function at address `kernel` in every thread, with the address of a job: the fields of
        HEAD, then `job`, in the order of `job_type`. Returns the number of faults that the kernel counted."""
        scratch = torch.empty(self.threads * scratch_bytes, dtype=torch.uint8)
        count = len(HEAD) + len(job)
        numbers = (ctypes.c_int64 * count)(0, 0, 0, 0, scratch.data_ptr(), scratch_bytes, *job)
        address = numbers[3] = ctypes.addressof(numbers)
        self._parallel(kernel, address, self.threads, 0)
        return numbers[FAULTS // NUMBER_BYTES]


def job_type(names: Sequence[str]) -> np.dtype[np.void]:
    """The layout of a job in memory: HEAD, then int64 fields of these names."""
    return np.dtype([(name, np.int64) for name in (*HEAD, *names)])


def available(dtype: torch.dtype) -> bool:
    """Whether kernels for this dtype can be compiled here, and are faster than PyTorch's own."""
    return (
        dtype in DTYPES
        and platform.machine() == "x86_64"
        and torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512"))  # these imply FMA and F16C
        and find_spec("numba") is not None
        and _parallel() is not None
    )


def places(tensor: Tensor) -> tuple[int, ...]:
    """Address of a tensor, and the strides in bytes of its dimensions except the last."""
    return tensor.data_ptr(), *(stride * tensor.itemsize for stride in tensor.stride()[:-1])


def _parallel() -> Any:
    """The loaded runtime's GOMP_parallel, which runs a function on a number of threads; None without one."""
    if sys.platform != "linux":
        return None
    run = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if run is not None:
        run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        run.restype = None
    return run
