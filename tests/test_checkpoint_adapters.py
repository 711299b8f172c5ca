"""LoRA adapters merged at load: equal to peft's own merge; tensors that fit no layer are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import ROBOFLOW, WEIGHTS, make_adapter, random_config, rename, save_merged
from goldens import imagenet_normalize, load_float32
from native import BASE, RULES
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import make_native
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from florence.checkpoint.adapters_beside import AdapterBase
from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.device.beams.reference import generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.errors import CheckpointError
from florence.model.florence2 import Florence2Model

VOCAB = 1100
PROMPT, FORCED = [0, 71, 412, 33, 9, 2], [2, 0, 17, 300, 999, 5]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Florence2ForConditionalGeneration]:
    """A tiny native checkpoint, and transformers' model of it."""
    directory = tmp_path_factory.mktemp("base")
    return directory, make_native(directory)


def with_adapter(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Florence2Model:
    """The model with this adapter merged in."""
    files, cpu = ("the adapter", adapter), torch.device("cpu")
    return load_model(base, read_config(base), imagenet_normalize(), VOCAB, cpu, dtype, files)


def picture() -> Tensor:
    """A random picture [1, height, width, 3]."""
    return torch.from_numpy(np.random.default_rng(7).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8))


@torch.inference_mode()
def logits(model: Florence2Model) -> Tensor:
    """The model's teacher-forced logits."""
    encoded = model.encode(model.encode_images(picture()), torch.tensor([PROMPT]))
    cross_kv = model.language.decoder.cross_kv(encoded)
    states, _ = model.language.decode(torch.tensor([FORCED]), None, cross_kv)
    return model.language.logits(states)


@torch.inference_mode()
def theirs(adapted: Any, model: Florence2Model) -> Tensor:
    """Teacher-forced logits of transformers' class with peft's layers beside its own, not merged."""
    ids = torch.tensor([[VOCAB - 1] * 5 + PROMPT])
    output: Tensor = adapted(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=model.vision.normalize(picture()).contiguous(),
        decoder_input_ids=torch.tensor([FORCED]),
    ).logits
    return output


@pytest.mark.parametrize("seed", range(8))
def test_a_merged_adapter_is_pefts_own(
    base: tuple[Path, Florence2ForConditionalGeneration], tmp_path: Path, seed: int
) -> None:
    """Logits of a merged random adapter equal those of peft's merged model to 1e-5, and those of peft's
    separate layers to 1e-4."""
    directory, native = base
    adapted = make_adapter(native, random_config(seed), tmp_path / "adapter", seed)
    model = with_adapter(directory, tmp_path / "adapter")
    found, plain = logits(model), logits(load_float32(directory, VOCAB))
    torch.testing.assert_close(found, theirs(adapted, model), atol=1e-4, rtol=0)
    save_merged(adapted, tmp_path / "merged")
    merged = load_float32(tmp_path / "merged", VOCAB)
    torch.testing.assert_close(found, logits(merged), atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-3  # the adapter changes the logits


@pytest.fixture(scope="module")
def roboflow(base: tuple[Path, Florence2ForConditionalGeneration], tmp_path_factory: Any) -> Path:
    """The usual adapter, as the largest platform trains it."""
    directory: Path = tmp_path_factory.mktemp("roboflow")
    config = LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=[*ROBOFLOW])
    make_adapter(base[1], config, directory)
    return directory


@pytest.mark.parametrize("names", ["original", "raw", "as a model"])
def test_every_spelling_of_the_names_is_the_same_adapter(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path, tmp_path: Path, names: str
) -> None:
    """Microsoft's module names, a whole state dict's keys, and a file called model.safetensors give the same
    adapter."""
    other = rename(roboflow, tmp_path / "other", original=names == "original", raw=names == "raw")
    if names == "as a model":
        (other / WEIGHTS).rename(other / "model.safetensors")
    found, expected = with_adapter(base[0], other), with_adapter(base[0], roboflow)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_tied_head_is_untied_and_the_embedding_stays(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path
) -> None:
    """An adapter of the tied head changes the head but not the embedding."""
    adapted, plain = with_adapter(base[0], roboflow).language, load_float32(base[0], VOCAB).language
    assert (adapted.tied_head, plain.tied_head) == (False, True)
    assert torch.equal(adapted.shared.weight, plain.shared.weight)
    assert not torch.equal(adapted.lm_head.weight, plain.lm_head.weight)


def test_the_merge_is_in_float32_and_the_cast_comes_last(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path
) -> None:
    """In bfloat16, each weight is the float32 merge rounded once."""
    exact = with_adapter(base[0], roboflow).state_dict()
    for name, tensor in with_adapter(base[0], roboflow, torch.bfloat16).state_dict().items():
        if tensor.dtype is torch.bfloat16:
            assert torch.equal(tensor, exact[name].bfloat16()), name


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_at_the_widths_of_florence_2_base_too(tmp_path: Path, dora: bool) -> None:
    """At the widths of Florence-2-base, with DoRA and without, logits equal those of peft's merged model to
    1e-5, and three beams give the same ids."""
    few = {"vocab_size": VOCAB}
    native = make_native(tmp_path / "base", **BASE | {"text_config": BASE["text_config"] | few})
    config = LoraConfig(r=8, lora_alpha=8, use_rslora=True, use_dora=dora, target_modules=[*ROBOFLOW, "qkv"])
    adapted = make_adapter(native, config, tmp_path / "adapter", size=0.01)
    del native
    model = with_adapter(tmp_path / "base", tmp_path / "adapter")
    save_merged(adapted, tmp_path / "merged")
    del adapted
    merged = load_float32(tmp_path / "merged", VOCAB)
    torch.testing.assert_close(logits(model), logits(merged), atol=1e-5, rtol=0)
    options = GenerationOptions(3, 8, 0, 3, True, 1.0)
    asked = Request(picture()[0].numpy(), tuple(PROMPT), options)
    found, expected = (generate_alone(each, asked, RULES).token_ids for each in (model, merged))
    assert found == expected


PEFT = "base_model.model."
LAYER = "model.language_model.decoder.layers.0"
Tensors = dict[str, Tensor]


def without(name: str) -> Callable[[Tensors], Tensors]:
    """A function that leaves out the tensor with this name."""
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def test_one_error_names_every_tensor_without_a_place(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path, tmp_path: Path
) -> None:
    """One error names every missing, unknown, misshapen or unexpected tensor."""
    other = rename(roboflow, tmp_path / "other")
    tensors = without(f"{PEFT}{LAYER}.fc2.lora_A.weight")(load_file(other / WEIGHTS))
    tensors["base_model.model.bert.pooler.lora_A.weight"] = torch.zeros(8, 4)
    tensors[f"{PEFT}{LAYER}.fc1.lora_B.bias"] = torch.zeros(72)
    tensors[f"{PEFT}lm_head.lora_B.weight"] = torch.zeros(VOCAB, 3)
    tensors[f"{PEFT}{LAYER}.fc2.lora_magnitude_vector"] = torch.zeros(48)
    save_file(tensors, other / WEIGHTS)
    with pytest.raises(CheckpointError) as refused:
        with_adapter(base[0], other)
    assert str(refused.value).splitlines() == [
        "the adapter the adapter does not fit the model:",
        "  base_model.model.bert.pooler.lora_A.weight: the model has no such layer",
        f"  {PEFT}{LAYER}.fc1.lora_B.bias: the model has no such layer",
        "  lm_head.lora_B: expected [1100, 8], found [1100, 3]",
        f"  {LAYER}.fc2.lora_A: missing",
        f"  {LAYER}.fc2.lora_magnitude_vector: unexpected, since use_dora is false",
    ]


def test_an_embedding_of_its_own_is_refused_unless_it_is_the_bases(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path, tmp_path: Path
) -> None:
    """An adapter file with the base's own embedding, as peft saves it, is accepted; a trained embedding is
    refused."""
    other = rename(roboflow, tmp_path / "other")
    shared = base[1].get_input_embeddings().weight.detach().clone()
    name = "base_model.model.model.language_model.shared.weight"
    save_file(load_file(other / WEIGHTS) | {name: shared}, other / WEIGHTS)
    with_adapter(base[0], other)
    save_file(load_file(other / WEIGHTS) | {name: shared + 1}, other / WEIGHTS)
    with pytest.raises(CheckpointError, match="has an embedding of its own"):
        with_adapter(base[0], other)


def test_a_whole_model_is_no_adapter(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path, tmp_path: Path
) -> None:
    """A file without LoRA tensors is refused, since it would replace every weight."""
    other = rename(roboflow, tmp_path / "other")
    save_file(load_file(base[0] / "model.safetensors"), other / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds no LoRA tensors"):
        with_adapter(base[0], other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', supported is only 'LORA'"),
        ({"r": 0}, "r is 0, expected an integer from 1 to 65536"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
        ({"use_rslora": 1}, "use_rslora is 1, expected true or false"),
        ({"lora_bias": True}, "lora_bias is True, which is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is .* not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's weights"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern is .*, '\\(' is not a regular expression"),
        ({"rank_pattern": {"(?i)fc1": 3}}, "rank_pattern is .*, '\\(\\?i\\)fc1' is not a regular expression"),
        ({"rank_pattern": {"x{9999999999}": 3}}, "rank_pattern is .* is not a regular expression"),
        ({"rank_pattern": {"fc1": None}}, "rank_pattern.fc1 is None, expected an integer"),
        ({"rank_pattern": [3]}, "rank_pattern is \\[3\\], expected an object"),
    ],
)
def test_settings_that_are_not_read_are_refused_by_name(
    base: tuple[Path, Florence2ForConditionalGeneration],
    roboflow: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    """An unsupported or invalid adapter setting is refused by name."""
    other = rename(roboflow, tmp_path / "other")
    path = other / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        with_adapter(base[0], other)


def beside(base: Path, adapter: Path) -> dict[str, Any]:
    """The adapter's factors, read to stand beside other adapters."""
    config = read_config(base)
    return AdapterBase(base, config, imagenet_normalize(), VOCAB, 64).read("the adapter", adapter)


def test_beside_others_an_adapters_factors_are_what_a_merge_adds(
    base: tuple[Path, Florence2ForConditionalGeneration], roboflow: Path
) -> None:
    """The product of an adapter's factors equals the merged weight minus the base's, for each layer and no
    other; peft's copy of the base's embedding is ignored."""
    merged, plain = with_adapter(base[0], roboflow).state_dict(), load_float32(base[0], VOCAB).state_dict()
    factors = beside(base[0], roboflow)
    for name, tensor in merged.items():
        change = tensor - plain[name]
        layer = name.removesuffix(".weight")
        expected = factors[layer].up @ factors[layer].down if layer in factors else torch.zeros_like(change)
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)
    assert "language.lm_head" in factors


def test_beside_others_what_is_trained_whole_and_convolutions_are_refused_together(
    base: tuple[Path, Florence2ForConditionalGeneration], tmp_path: Path
) -> None:
    """One error names all convolutions and layers trained whole that can't stand beside other adapters."""
    config = LoraConfig(r=2, target_modules=["conv", "fc1"], modules_to_save=["image_proj_norm"], bias="all")
    make_adapter(base[1], config, tmp_path)
    with pytest.raises(
        CheckpointError, match="can't stand beside other adapters; FLORENCE_ADAPTER can"
    ) as refused:
        beside(base[0], tmp_path)
    lines = str(refused.value).splitlines()
    assert any("stem.conv.weight: not a linear layer" in line for line in lines)
    assert any("norm.weight: trained whole" in line for line in lines)
    assert any("fc1.bias: trained whole" in line for line in lines)
