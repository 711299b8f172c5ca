"""The other side of `florence verify` with an adapter: PEFT merges it, for each kind of saved names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from adapters import ROBOFLOW, WEIGHTS, make_adapter, random_config, rename
from goldens import imagenet_normalize
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import make_native
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.errors import CheckpointError
from florence.verification import merging
from florence.verification.reading import read_model

VOCAB = 1100
USUAL = LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=[*ROBOFLOW, "qkv", "conv"])
Base = tuple[Path, Florence2ForConditionalGeneration]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny checkpoint in transformers' layout, and its model."""
    directory = tmp_path_factory.mktemp("base")
    return directory, make_native(directory)


@pytest.fixture(scope="module")
def usual(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Tensor]]:
    """An adapter, and the tensors of PEFT's own merge."""
    directory = tmp_path_factory.mktemp("usual")
    adapted = make_adapter(base[1], USUAL, directory)
    return directory, adapted.merge_and_unload().state_dict()


def check(base: Path, adapter: Path, expected: Mapping[str, Tensor]) -> None:
    """Check that the adapter's merge gives the expected tensors."""
    found = read_model(base, VOCAB, adapter).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_any_adapter_is_pefts_own_merge(base: Base, tmp_path: Path, seed: int) -> None:
    """Random adapters equal PEFT's merge: ranks, scalings, patterns, DoRA, whole layers, biases,
    convolutions, tower and head."""
    adapted = make_adapter(base[1], random_config(seed), tmp_path / "adapter", seed)
    check(base[0], tmp_path / "adapter", adapted.merge_and_unload().state_dict())


@pytest.mark.parametrize("names", ["original", "raw", "as a model", "wrapped"])
def test_names_of_every_kind(
    base: Base, usual: tuple[Path, Mapping[str, Tensor]], tmp_path: Path, names: str
) -> None:
    """Names of Microsoft's layout, a raw state dict, a file named as a model and a compiler's prefix are
    read."""
    other = rename(usual[0], tmp_path / "other", original=names == "original", raw=names == "raw")
    if names == "as a model":
        (other / WEIGHTS).rename(other / "model.safetensors")
    if names == "wrapped":
        tensors = load_file(other / WEIGHTS)
        save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, other / WEIGHTS)
    check(base[0], other, usual[1])


def test_rows_that_stand_for_no_token_may_be_missing(
    base: Base, usual: tuple[Path, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    """A head adapter trained in Microsoft's layout may lack the rows without a token; the others are as
    PEFT merges them, also in this package's loader."""
    other = rename(usual[0], tmp_path / "other", original=True)
    cut = {
        name: tensor[:-1].contiguous() if len(tensor) == VOCAB else tensor
        for name, tensor in load_file(other / WEIGHTS).items()
    }
    save_file(cut, other / WEIGHTS)
    found = read_model(base[0], VOCAB - 1, other).lm_head.weight[: VOCAB - 1]
    torch.testing.assert_close(found, usual[1]["lm_head.weight"][:-1], atol=1e-6, rtol=0)
    config, cpu = read_config(base[0]), torch.device("cpu")
    merged = ("other", other)
    ours = load_model(base[0], config, imagenet_normalize(), VOCAB - 1, cpu, torch.float32, merged)
    torch.testing.assert_close(ours.language.lm_head.weight, found, atol=1e-6, rtol=0)


def test_what_has_no_place_is_refused(
    base: Base, usual: tuple[Path, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    """A layer that transformers' model lacks, and a factor without its partner, are refused by name."""
    for old, new in (("fc2.lora_A", "fc7.lora_A"), ("fc2.lora_A", None)):
        other = rename(usual[0], tmp_path / str(new))
        tensors = load_file(other / WEIGHTS)
        name = next(name for name in tensors if old in name)
        tensor = tensors.pop(name)
        if new is not None:
            tensors[name.replace(old, new)] = tensor
        save_file(tensors, other / WEIGHTS)
        with pytest.raises(CheckpointError, match=r"fc7" if new else r"fc2\.lora_A"):
            read_model(base[0], VOCAB, other)


def test_without_peft_an_adapter_is_refused(
    florence: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without PEFT an adapter is refused before anything is loaded, with what to install."""
    monkeypatch.setattr(merging, "find_spec", lambda name: None)
    monkeypatch.setenv("FLORENCE_ADAPTER", str(tmp_path))
    status, out, error = florence("verify", "--model", "demo")
    assert (status, out) == (2, "")
    assert "pip install peft" in error
