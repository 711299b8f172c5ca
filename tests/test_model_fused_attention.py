"""A device uses those of PyTorch's attentions that agree with float32 on the model's own shapes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import make_native
from torch import Tensor

from florence.checkpoint.config import read_config
from florence.errors import EngineError
from florence.model import fused_attention
from florence.model.config import ModelConfig
from florence.model.fused_attention import EFFICIENT, FLASH, MATH, BackendTrial, pin_attention, trials_of

BEAMS, LENGTHS, ROOM = (1, 3, 8), (64, 128), 128


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The config of a tiny checkpoint."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    make_native(directory)
    return read_config(directory)


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Restore the process's enabled attentions after each test."""
    cuda = torch.backends.cuda
    enabled = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]
    cudnn = cuda.cudnn_sdp_enabled()
    yield
    for enable, was in zip(
        (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp), enabled, strict=True
    ):
        enable(was)
    cuda.enable_cudnn_sdp(cudnn)


def trials(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Iterator[BackendTrial]:
    """The trials of attention in the model's shapes."""
    return trials_of(config, LENGTHS, ROOM, BEAMS, torch.device("cpu"), dtype)


def enabled() -> set[str]:
    """The names of the enabled attentions."""
    cuda = torch.backends.cuda
    names = ("flash", "mem_efficient", "math", "cudnn")
    return {name for name in names if getattr(cuda, f"{name}_sdp_enabled")()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attentions_that_agree_are_kept_and_cudnn_s_is_not(
    config: ModelConfig, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    """Windows, encoder and cross-attention are tried in every shape of steps and encodes; all that agree
    are kept, and cuDNN's is off."""
    caplog.set_level(logging.INFO)
    names = [trial.name for trial in trials(config, dtype)]
    assert len(names) == len(config.vision.dims) + len(LENGTHS) * (1 + len(BEAMS))
    assert pin_attention(trials(config, dtype)) == (FLASH, EFFICIENT, MATH)
    assert enabled() == {"flash", "mem_efficient", "math"}
    assert "flash_attention, efficient_attention, math; 12 shapes agree" in caplog.text


def attend(*args: Any, wrong: str, **named: Any) -> Tensor:
    """PyTorch's attention on a device where the attention `wrong` gives NaN, noise, or an error for masks."""
    backend, kind = wrong.split()
    if getattr(torch.backends.cuda, f"{backend}_sdp_enabled")() and named["attn_mask"] is not None:
        if kind == "raises":
            raise RuntimeError("No execution plans support the graph")
        factor = torch.nan if kind == "NaN" else 1.5
        return PLAIN(*args, **named) * factor
    return PLAIN(*args, **named)


PLAIN = F.scaled_dot_product_attention


@pytest.mark.parametrize("kind", ["NaN", "noise", "raises"])
@pytest.mark.parametrize(
    ("backend", "kept"), [("flash", (EFFICIENT, MATH)), ("mem_efficient", (FLASH, MATH))]
)
def test_an_attention_that_is_wrong_is_not_used(
    config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    backend: str,
    kind: str,
    kept: tuple[object, ...],
) -> None:
    """An attention that gives NaN, noise or an error for masks is not used, and the log gives the reason."""
    monkeypatch.setattr(
        fused_attention.F,
        "scaled_dot_product_attention",
        lambda *args, **named: attend(*args, wrong=f"{backend} {kind}", **named),
    )
    assert pin_attention(trials(config)) == kept
    assert backend not in enabled()
    assert "is not used: encoder of 64: " in caplog.text


def test_a_device_on_which_none_is_right_serves_nothing(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without a right attention is an error."""
    monkeypatch.setattr(
        fused_attention.F,
        "scaled_dot_product_attention",
        lambda *args, **named: attend(*args, wrong="math noise", **named),
    )
    with pytest.raises(EngineError, match="agrees with float32"):
        pin_attention(trials(config))
