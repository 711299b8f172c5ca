""" "auto" takes what the machine has; any other name is taken or refused."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from florence.errors import SettingsError
from florence.model.devices import (
    KERNEL_CACHES,
    MALLOC_OPTIONS,
    bound_kernel_caches,
    has_fast_bf16,
    has_vnni,
    keep_freed_memory,
    keep_full_precision,
    pick_device,
    pick_dtype,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "fpu avx512f avx512_bf16", True),
        ("GenuineIntel", "fpu avx512f avx512_bf16", False),  # half the rate of float32
        ("GenuineIntel", "fpu avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("AuthenticAMD", "fpu avx2 avx512f", False),
        ("GenuineIntel", "fpu avx2 avx512f", False),
        ("", "fpu avx512_bf16", False),
        ("", "", False),
    ],
)
def test_bfloat16_is_fast_only_where_vendor_and_flags_say_so(
    tmp_path: Path, vendor: str, flags: str, fast: bool
) -> None:
    """bfloat16 is fast only for certain vendors and processor flags."""
    processor = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nvmx flags\t: vnmi\n"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"{processor}\n{processor}\n")
    assert has_fast_bf16(cpuinfo) is fast


def test_a_system_that_does_not_say_has_no_fast_bfloat16(tmp_path: Path) -> None:
    """Without /proc/cpuinfo bfloat16 counts as slow."""
    assert has_fast_bf16(tmp_path / "none") is False


def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU "auto" is bfloat16 where it is fast, else float32."""
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("florence.model.devices.has_fast_bf16", lambda fast=fast: fast)
        assert pick_dtype("auto", CPU) is expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken(name: str) -> None:
    """A dtype given by name is used."""
    assert pick_dtype(name, CPU) is getattr(torch, name)


@pytest.mark.parametrize("name", ["int4", "fp32", ""])
def test_an_unknown_dtype_is_refused(name: str) -> None:
    """The error for an unknown dtype lists the known ones."""
    with pytest.raises(SettingsError, match="use auto, float32, bfloat16, float16, int8"):
        pick_dtype(name, CPU)


@pytest.mark.parametrize(
    ("flags", "vnni"), [("fpu avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), ("avx512f", False)]
)
def test_int8_is_for_processors_with_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, vnni: bool
) -> None:
    """int8 needs a CPU with VNNI; the rest of the model has the dtype of "auto"."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n")
    assert has_vnni(cpuinfo) is vnni
    monkeypatch.setattr("florence.model.devices.has_vnni", lambda: vnni)
    monkeypatch.setattr("florence.model.devices.can_quantize", lambda: True)
    if vnni:
        assert pick_dtype("int8", CPU) is pick_dtype("auto", CPU)
    else:
        with pytest.raises(SettingsError, match="needs a CPU with VNNI"):
            pick_dtype("int8", CPU)
    with pytest.raises(SettingsError, match="needs a CPU"):
        pick_dtype("int8", torch.device("cuda"))


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:999", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    """A missing or unknown device is refused."""
    with pytest.raises(SettingsError, match="device"):
        pick_device(name)


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU "auto" is the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU


FILL_TWICE = """
import resource, threading
import torch
from florence.model.devices import keep_freed_memory

keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(150 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def fill():
    first, second = faults(), faults()
    assert second < first / 10, (first, second)

thread = threading.Thread(target=fill)
thread.start()
thread.join()
print("kept")
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_written_again_without_the_kernel() -> None:
    """A second tensor of the same size causes almost no page faults, also in a thread other than the main
    one."""
    run = subprocess.run([sys.executable, "-c", FILL_TWICE], capture_output=True, text=True, timeout=600)
    assert run.stdout == "kept\n", run.stderr


def test_elsewhere_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another C library than glibc, no memory setting is changed."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("a C library is asked"))
    keep_freed_memory()


def test_a_malloc_option_in_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those options of glibc are set whose variables the environment lacks."""
    done: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda option, value: done.append((option, value)))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(os, "environ", {"MALLOC_ARENA_MAX": "4"})
    keep_freed_memory()
    assert done == [given for name, given in MALLOC_OPTIONS.items() if name != "MALLOC_ARENA_MAX"]


def test_kernel_caches_are_bounded_unless_the_environment_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel caches are bounded by default; a value in the environment stays."""
    environ = {"LRU_CACHE_CAPACITY": "77"}
    monkeypatch.setattr(os, "environ", environ)
    bound_kernel_caches()
    assert environ == KERNEL_CACHES | {"LRU_CACHE_CAPACITY": "77"}


@pytest.fixture
def precisions() -> Iterator[list[Any]]:
    """The settings with an `fp32_precision`, set to TF32 during the test."""
    products = torch.backends.cuda.matmul
    halves = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    rounding = [getattr(products, name) for name in halves]
    settings = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32"
    yield settings
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value
    for name, rounds in zip(halves, rounding, strict=True):
        setattr(products, name, rounds)


def test_float32_on_a_gpu_is_float32_in_convolutions_and_products(precisions: list[Any]) -> None:
    """float32 on a GPU turns TF32 off, which is cuDNN's default; other devices and dtypes change no
    setting."""
    keep_full_precision(CPU, torch.float32)
    keep_full_precision(torch.device("cuda"), torch.bfloat16)
    assert [setting.fp32_precision for setting in precisions] == ["tf32", "tf32"]
    keep_full_precision(torch.device("cuda:0"), torch.float32)
    assert [setting.fp32_precision for setting in precisions] == ["ieee", "ieee"]


def test_sums_of_half_precision_are_float32_on_a_gpu(precisions: list[Any]) -> None:
    """Sums in half precision are float32 on a GPU, also where a library splits them; by default the parts
    are rounded."""
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = True
    keep_full_precision(CPU, torch.bfloat16)
    assert products.allow_bf16_reduced_precision_reduction
    keep_full_precision(torch.device("cuda:0"), torch.bfloat16)
    assert not products.allow_bf16_reduced_precision_reduction
    assert not products.allow_fp16_reduced_precision_reduction
