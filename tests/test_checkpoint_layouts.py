"""Each layout of files in use is loaded and answers, or is refused with its name and a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import BARE, DEMO, INDEX, LAYOUTS, WEIGHTS, native, sharded, write
from safetensors.torch import save_file
from serving import ROOT

from florence import Florence2
from florence.answers.answer import Answer
from florence.checkpoint.config import MAX_SETTINGS, read_config
from florence.checkpoint.hub import Checkpoint, copy_checkpoint, resolve_checkpoint
from florence.errors import CheckpointError
from florence.types.results import Detections

PICTURE = ROOT / "data" / "busy_00.jpg"


def ask(name: Path | str, **options: Any) -> Answer:
    """The model's answer about the picture."""
    with Florence2.load(str(name), device="cpu", dtype="float32", threads=1, **options) as model:
        return model.run(PICTURE, "<OD>")


def labels(answer: Answer) -> list[str]:
    """The labels of an answer's detections."""
    assert isinstance(answer.result, Detections)
    return [found.label for found in answer.result.detections]


@pytest.fixture(scope="module")
def demo() -> Answer:
    """The demo's answer, from its own layout."""
    return ask("demo")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_answers_as_the_demo_does(tmp_path: Path, demo: Answer, layout: str) -> None:
    """Each layout gives the demo's tokens with the same log-probabilities."""
    made = LAYOUTS[layout](tmp_path / "made")
    answer = ask(made, base="demo" if layout in BARE else None)
    if layout == "castollux":  # bfloat16 rounds the demo's float16
        assert labels(answer) == labels(demo)
    else:
        assert answer.token_ids == demo.token_ids
        assert answer.token_logprobs == pytest.approx(demo.token_logprobs, abs=1e-4)


def test_what_a_base_gives_goes_with_the_copy(tmp_path: Path, demo: Answer) -> None:
    """A copy of a checkpoint includes the files of its base and works without the base."""
    made = LAYOUTS["model_only"](tmp_path / "made")
    packed = tmp_path / "packed"
    packed.mkdir()
    copy_checkpoint(resolve_checkpoint(str(made), None, "demo"), packed)
    assert ask(packed).raw_text == demo.raw_text


def test_a_base_is_not_asked_for_what_is_there(tmp_path: Path) -> None:
    """A base is not resolved if the checkpoint has all files."""
    made = native(tmp_path / "made")
    assert resolve_checkpoint(str(made), None, "no/where") == Checkpoint(str(made), None, made)


def test_a_folder_without_tokenizer_names_the_way_out(tmp_path: Path) -> None:
    """A folder without a tokenizer is refused with the setting that names a base."""
    with pytest.raises(
        CheckpointError, match=r"lacks tokenizer\.json .* FLORENCE_BASE may name the checkpoint"
    ):
        resolve_checkpoint(str(LAYOUTS["omniparser"](tmp_path / "made")))


def lfs_pointer(directory: Path) -> Path:
    """Weights that are a Git LFS pointer."""
    shutil.copytree(DEMO, directory)
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1538000000\n"
    (directory / WEIGHTS).write_text(text)
    return directory


def lfs_tokenizer(directory: Path) -> Path:
    """A tokenizer that is a Git LFS pointer."""
    lfs_pointer(directory)
    (directory / WEIGHTS).rename(directory / "tokenizer.json")
    shutil.copy(DEMO / WEIGHTS, directory)
    return directory


def bitsandbytes(directory: Path) -> Path:
    """Weights quantised by bitsandbytes."""
    name = "model.language_model.encoder.layers.0.fc1.weight"

    def quantise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        return tensors | {name: packed, f"{name}.absmax": torch.zeros(9)}

    native(directory, quantise)
    config = json.loads((directory / "config.json").read_text())
    write(directory, "config.json", config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    return directory


def mlx(directory: Path) -> Path:
    """A conversion to MLX."""
    sharded(directory)
    for shard in directory.glob("*.safetensors"):
        save_file({shard.stem: torch.zeros(2, 7, 7, 3)}, shard, {"format": "mlx"})
    return directory


def onnx(directory: Path) -> Path:
    """An export to ONNX."""
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns(WEIGHTS))
    (directory / "onnx").mkdir()
    (directory / "onnx" / "decoder_model.onnx").write_bytes(b"\x08")
    return directory


def gguf(directory: Path) -> Path:
    """A GGUF file."""
    directory.mkdir()
    (directory / "florence-2-q4.gguf").write_bytes(b"GGUF")
    return directory


def pickled(directory: Path) -> Path:
    """Weights only as a pickle."""
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns(WEIGHTS))
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return directory


def adapter(directory: Path) -> Path:
    """A LoRA adapter."""
    directory.mkdir()
    write(directory, "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "owner/base"})
    lora = {"base_model.model.language_model.lm_head.lora_A.weight": torch.zeros(2, 4)}
    save_file(lora, directory / "adapter_model.safetensors")
    return directory


def adapter_as_a_model(directory: Path) -> Path:
    """An adapter named as a model, with the configuration and the tokenizer that trainers leave beside it."""
    adapter(directory)
    (directory / "adapter_model.safetensors").rename(directory / WEIGHTS)
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    return directory


def adapter_beside(directory: Path) -> Path:
    """Weights with an adapter's tensors beside them."""
    return native(directory, lambda tensors: tensors | {"lm_head.lora_A.default.weight": torch.zeros(2, 4)})


def shard_missing(directory: Path) -> Path:
    """Sharded weights without the second shard."""
    sharded(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    return directory


def twice(directory: Path) -> Path:
    """Weights with two names for one tensor."""
    return native(
        directory,
        lambda tensors: tensors | {"module.lm_head.weight": torch.zeros(2), "lm_head.weight": torch.ones(2)},
    )


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lfs_pointer, "model.safetensors is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (lfs_tokenizer, "tokenizer.json is a Git LFS pointer"),
    (
        bitsandbytes,
        r"quantised by bitsandbytes \(.* is U8\), which are not read\. Take the checkpoint that it",
    ),
    (mlx, "is a conversion to MLX, whose tensors have another layout"),
    (onnx, "is an export to ONNX, which is not read"),
    (gguf, "is a GGUF file for llama.cpp, which is not read"),
    (pickled, r"has its weights as pickle \(.bin\) only: .*`florence convert SOURCE OUT`"),
    (adapter, "is a LoRA adapter for owner/base, not a whole checkpoint: set FLORENCE_MODEL to"),
    (adapter_as_a_model, "is a LoRA adapter for owner/base, not a whole checkpoint"),
    (adapter_beside, "holds an adapter beside its weights, such as lm_head.lora_A.default.weight"),
    (shard_missing, "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names"),
    (twice, "module.lm_head.weight and lm_head.weight are the same tensor's names"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_no_checkpoint_is_refused_by_what_it_is(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    """A folder that can't be loaded is refused with what it is."""
    with pytest.raises(CheckpointError, match=message):
        ask(make(tmp_path / "made"))


def test_weights_beside_an_adapter_are_a_model(tmp_path: Path, demo: Answer) -> None:
    """A folder with a whole model and an adapter is loaded as the model."""
    made = native(tmp_path / "made")
    write(made, "adapter_config.json", {"peft_type": "LORA"})
    save_file({"lm_head.lora_A.weight": torch.zeros(2, 4)}, made / "adapter_model.safetensors")
    assert ask(made).raw_text == demo.raw_text


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", INDEX]
)
def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path, name: str) -> None:
    """JSON nested too deep, in any file, is refused without a RecursionError."""
    made = sharded(tmp_path / "made") if name == INDEX else native(tmp_path / "made")
    (made / name).write_text(f'{{"a": {DEEP}}}')
    with pytest.raises(CheckpointError, match=r"nested too deep|can't be read"):
        ask(made)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "encoder_layers", 10**6),
        ("text_config", "decoder_layers", MAX_SETTINGS["decoder_layers"] + 1),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "d_model", 10**400),
        ("text_config", "decoder_ffn_dim", 10**9),
        ("text_config", "max_position_embeddings", 10**9),
        ("vision_config", "depths", [1, 1, 10**6, 1]),
        ("vision_config", "embed_dim", [16, 16, 10**7, 64]),
        ("vision_config", "window_size", 10**6),
        ("vision_config", "mlp_ratio", 10**6),
    ],
)
def test_absurd_sizes_are_refused_at_once(tmp_path: Path, section: str, key: str, value: object) -> None:
    """Absurd sizes are refused in one short line before a layer is made."""
    config = json.loads((DEMO / "config.json").read_text())
    config[section][key] = value
    write(tmp_path, "config.json", config)
    with pytest.raises(CheckpointError, match=f"{section}.{key} is .*, expected .* to [0-9]+$") as refused:
        read_config(tmp_path)
    assert len(str(refused.value).removeprefix(str(tmp_path))) < 200


def test_wrong_ids_outside_of_the_text_config_are_ignored(tmp_path: Path) -> None:
    """Wrong ids at the top level and in generation_config.json are ignored: both layouts use those of
    `text_config`."""
    for made in (LAYOUTS["docvqa"](tmp_path / "original"), native(tmp_path / "native")):
        write(made, "generation_config.json", {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
        text = read_config(made).text
        assert (text.bos_id, text.pad_id, text.eos_id, text.start_id) == (0, 1, 2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"image_std": [1e-300] * 3},
        {"image_std": [1e-9] * 3},
        {"image_mean": [1e30] * 3},
        {"rescale_factor": 1e-300},
        {"rescale_factor": 1e6},
    ],
)
def test_factors_that_make_no_pictures_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Factors that would make every request fail are refused at load."""
    made = native(tmp_path / "made")
    values = json.loads((made / "preprocessor_config.json").read_text())
    write(made, "preprocessor_config.json", values | change)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: image_std is .*rescale"):
        ask(made)


def test_pictures_that_are_not_resized_need_a_size(tmp_path: Path, demo: Answer) -> None:
    """A checkpoint with `do_resize: false` needs FLORENCE_INPUT_SIZE, and answers with it."""
    made = native(tmp_path / "made")
    values = json.loads((made / "preprocessor_config.json").read_text())
    write(made, "preprocessor_config.json", values | {"do_resize": False})
    with pytest.raises(CheckpointError, match=r"do_resize is False, so FLORENCE_INPUT_SIZE has to say"):
        ask(made)
    assert ask(made, input_size=160).raw_text == demo.raw_text


@pytest.mark.parametrize("side", [48, 100_000])
def test_an_input_size_that_the_tower_can_not_take_is_refused(side: int) -> None:
    """An input size that the tower does not support is refused."""
    with pytest.raises(CheckpointError, match=r"FLORENCE_INPUT_SIZE says; the tower needs multiples of 32"):
        ask("demo", input_size=side)
