"""FLORENCE_BASE, FLORENCE_ADAPTER and FLORENCE_INPUT_SIZE: they reach the model and are checked at
the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import make_adapter
from layouts import DEMO, LAYOUTS
from peft import LoraConfig
from transformers import Florence2ForConditionalGeneration

from florence import Florence2
from florence.server.loading import fetch_checkpoint
from florence.settings import read_settings


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of one layer of the demo checkpoint."""
    native = Florence2ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["decoder.layers.0.fc1"])
    make_adapter(native, config, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_variables_choose_what_is_loaded(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, base, adapter and size come from the environment, and `info` and the checkpoint's name show
    them."""
    made = LAYOUTS["model_only"](tmp_path / "made")
    for name, value in (("MODEL", made), ("BASE", "demo"), ("ADAPTER", adapter), ("INPUT_SIZE", 96)):
        monkeypatch.setenv(f"FLORENCE_{name}", str(value))
    settings = read_settings()
    fetch_checkpoint(settings)
    with Florence2.from_settings(settings, "cpu") as model:
        info = model.info()
        assert (info["adapter"], info["picture_size"]) == (str(adapter), [96, 96])
        assert model.checkpoint == f"{made} + {adapter}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ADAPTER", "demo/../x", "there is no checkpoint"),
        ("ADAPTER", str(DEMO), "lacks adapter_config.json, without which its tensors can't be scaled"),
        ("BASE", str(Path(__file__).parent), "the base .* lacks tokenizer.json"),
        ("BASE", "demo/../x", "there is no checkpoint"),
        ("MODEL", "/nowhere", "there is no checkpoint"),
        ("REVISION", "main", "has no revisions"),
        ("ADAPTERS", "a=/nowhere", "there is no checkpoint"),
        ("ADAPTERS_FILE", "/nowhere", "can't be read"),
        # Stands for a folder without permission, which root could enter all the same.
        ("MODEL", "x" * 5000, "File name too long"),
        ("BASE", "x" * 5000, "File name too long"),
        ("ADAPTER", "x" * 5000, "File name too long"),
    ],
)
def test_a_start_ends_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """A wrong setting ends the start with one line that names it."""
    monkeypatch.setenv("FLORENCE_MODEL", str(LAYOUTS["model_only"](tmp_path / "made")))
    monkeypatch.setenv("FLORENCE_BASE", "demo")
    monkeypatch.setenv(f"FLORENCE_{name}", value)
    with pytest.raises(SystemExit, match=f"^florence: .*FLORENCE_{name}.*{message}"):
        fetch_checkpoint(read_settings())
