""" "auto" takes what the machine has; everything else is taken or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from florence.errors import SettingsError
from florence.model.devices import has_native_bf16, pick_device, pick_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f", False),
        ("", False),
    ],
)
def test_bfloat16_is_native_only_where_a_flag_says_so(tmp_path: Path, flags: str, native: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert has_native_bf16(cpuinfo) is native


def test_a_system_that_does_not_say_has_no_native_bfloat16(tmp_path: Path) -> None:
    assert has_native_bf16(tmp_path / "none") is False


def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_native() -> None:
    assert pick_dtype("auto", CPU) is (torch.bfloat16 if has_native_bf16() else torch.float32)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken(name: str) -> None:
    assert pick_dtype(name, CPU) is getattr(torch, name)


@pytest.mark.parametrize("name", ["int8", "fp32", ""])
def test_an_unknown_dtype_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="use auto, float32, bfloat16, float16"):
        pick_dtype(name, CPU)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:999", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="device"):
        pick_device(name)


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
