"""Checkpoints load completely or not at all, for every tool that saves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from goldens import Goldens, load_float32
from safetensors.torch import load_file, save_file
from tiny import make_native
from torch import Tensor

from florence.errors import CheckpointError
from florence.model.florence2 import Florence2Model

SHARED = "language_model.model.shared.weight"
HEAD = "language_model.lm_head.weight"
EMBEDDINGS = [f"language_model.model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]


@pytest.fixture(scope="module")
def original(goldens: Goldens) -> dict[str, Tensor]:
    """The tensors of the goldens' checkpoint."""
    return load_file(goldens.checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def plain(goldens: Goldens) -> Florence2Model:
    """The model of the goldens' checkpoint."""
    return load_float32(goldens.checkpoint)


@pytest.fixture
def directory(goldens: Goldens, tmp_path: Path) -> Path:
    """A checkpoint's directory in the original layout, without its tensors."""
    (tmp_path / "config.json").write_bytes((goldens.checkpoint / "config.json").read_bytes())
    return tmp_path


def same_weights(one: Florence2Model, other: Florence2Model) -> bool:
    """Return whether both models have equal weights."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "names", [[SHARED, HEAD], [SHARED], [HEAD], [SHARED, HEAD, *EMBEDDINGS], [EMBEDDINGS[0]]]
)
def test_tied_weights_load_under_any_of_their_names(
    plain: Florence2Model, original: dict[str, Tensor], directory: Path, names: list[str]
) -> None:
    """Tied weights may have any of their names in the file, and share memory."""
    tensors = {name: tensor for name, tensor in original.items() if name not in (SHARED, HEAD)}
    save_file(tensors | {name: original[SHARED].clone() for name in names}, directory / "model.safetensors")
    model = load_float32(directory)
    assert same_weights(model, plain)
    if HEAD not in names:
        assert model.language.lm_head.weight.data_ptr() == model.language.shared.weight.data_ptr()


def test_shards_load_as_one_file_does(
    plain: Florence2Model, original: dict[str, Tensor], directory: Path
) -> None:
    """Shards give the same weights as one file; an index that names a file elsewhere is refused."""
    weight_map = {
        name: f"model-0000{index % 3 + 1}-of-00003.safetensors" for index, name in enumerate(original)
    }
    for shard in set(weight_map.values()):
        part = {name: tensor for name, tensor in original.items() if weight_map[name] == shard}
        save_file(part, directory / shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same_weights(load_float32(directory), plain)

    index.write_text(json.dumps({"weight_map": weight_map | {HEAD: "../model.safetensors"}}))
    with pytest.raises(
        CheckpointError, match=r"names files other than safetensors files beside it: '\.\./model\.safetensors"
    ):
        load_float32(directory)


def test_one_error_names_every_tensor_that_does_not_fit(original: dict[str, Tensor], directory: Path) -> None:
    """One error lists all missing, unexpected and wrongly shaped tensors."""
    tensors = dict(original)
    tensors["image_projection"] = tensors["image_projection"][:-1].clone()
    tensors["lora.extra"] = torch.zeros(3, 5)
    del tensors["vision_tower.convs.2.norm.bias"]
    del tensors["language_model.model.decoder.layers.1.fc2.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_float32(directory)
    assert str(error.value).splitlines()[1:] == [
        "  image_projection: expected [256, 32], found [255, 32]",
        "  language_model.model.decoder.layers.1.fc2.weight: missing, expected [32, 128]",
        "  lora.extra: unexpected, [3, 5] in the file",
        "  vision_tower.convs.2.norm.bias: missing, expected [64]",
    ]


def test_a_file_that_was_cut_short_is_refused(goldens: Goldens, directory: Path) -> None:
    """An incomplete safetensors file is refused."""
    whole = (goldens.checkpoint / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load_float32(directory)


def test_a_directory_without_tensors_is_refused(directory: Path) -> None:
    """A directory without tensors is refused by the names of the missing files."""
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_float32(directory)


def test_tensors_of_another_model_are_refused(directory: Path) -> None:
    """Tensors of another model are refused."""
    save_file({"bert.embeddings.weight": torch.zeros(2, 2)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold no Florence-2"):
        load_float32(directory)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', "{"])
def test_a_malformed_index_is_refused(directory: Path, index: str) -> None:
    """The error names the malformed index."""
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="can't be read as an index of safetensors files"):
        load_float32(directory)


def test_rows_after_the_vocabulary_are_dropped(tmp_path: Path) -> None:
    """The picture token and padding rows of a native checkpoint never compete with real tokens."""
    vocab = make_native(tmp_path).config.text_config.vocab_size
    whole, cut = load_float32(tmp_path, vocab), load_float32(tmp_path, vocab - 37)
    states = torch.randn(4, whole.config.text.d_model)
    logits = cut.language.logits(states)
    assert logits.shape == (4, vocab - 37)
    torch.testing.assert_close(logits, whole.language.logits(states)[:, : vocab - 37])


def test_a_native_checkpoint_may_keep_a_head_of_its_own(tmp_path: Path) -> None:
    """The head is tied unless `tie_word_embeddings` is false; then the file's own head is used."""
    model = make_native(tmp_path)
    vocab = model.config.text_config.vocab_size
    tensors = load_file(tmp_path / "model.safetensors")
    own = torch.randn(vocab, model.config.text_config.d_model)
    save_file(tensors | {"lm_head.weight": own}, tmp_path / "model.safetensors")
    tied = load_float32(tmp_path, vocab).language
    assert torch.equal(tied.lm_head.weight, tied.shared.weight)

    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_float32(tmp_path, vocab).language.lm_head.weight, own)
