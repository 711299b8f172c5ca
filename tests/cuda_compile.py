"""Compile Triton kernels without a GPU, as their launches would, and read which resources they use."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel: registers and bytes of local memory (spills included) per thread, and
    bytes of shared memory per program."""

    name: str
    registers: int
    local: int
    shared: int
    ptx: str


class AbsentDriver:
    """Answer triton's questions about the device."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """The target that kernels are compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """A number that stands for the device."""
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        """A number that stands for the stream."""
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Usage]]:
    """In this block, launches compile for `capability` (90: sm_90) and launch nothing; the list gets the
    resources that each uses.

    The active driver is private in triton, which has no public function to restore it.
    """
    used: list[Usage] = []

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def compile_only(*arguments: Any, **options: Any) -> None:
            made = kernel.run(*arguments, grid=(1,), warmup=True, **options)
            used.append(usage(kernel.__name__, made))

        return compile_only

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(AbsentDriver(capability))
    try:
        with patch.object(JITFunction, "__getitem__", launcher):
            yield used
    finally:
        triton.runtime.driver._active = before


def usage(name: str, made: Any) -> Usage:
    """The resources of a compiled kernel, read by the tools that come with triton."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        told = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", told)}
    local = figures["STACK"] + figures["LOCAL"]
    return Usage(name, figures["REG"], local, made.metadata.shared, made.asm["ptx"])
