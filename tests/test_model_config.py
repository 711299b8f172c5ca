"""Each field of `config.json` is applied, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import make_native

from florence.checkpoint.config import read_config
from florence.errors import CheckpointError
from florence.model.config import GenerationDefaults, StackConfig
from florence.types.bounds import MAX_BEAMS, MAX_NGRAM, MAX_PENALTY
from florence.types.options import GenerationParameters


@pytest.fixture(scope="session")
def large(shared: Path) -> dict[str, Any]:
    """The real config.json of Florence-2-large, in the original schema."""
    values: dict[str, Any] = json.loads((shared / "florence2-large" / "config.json").read_text())
    return values


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config.json of a small checkpoint in the native schema."""
    directory = tmp_path_factory.mktemp("native")
    make_native(directory)
    values: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return values


def write(directory: Path, values: object, name: str = "config.json") -> Path:
    """Write the values as JSON into the directory, which is returned."""
    (directory / name).write_text(json.dumps(values))
    return directory


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one value replaced, or removed if it is None."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    *parents, last = path.split(".")
    inner = copy
    for parent in parents:
        inner = inner[parent]
    inner.pop(last, None)
    if value is not None:
        inner[last] = value
    return copy


def test_the_real_large_config_is_read(large: dict[str, Any], tmp_path: Path) -> None:
    """The sizes and settings of Florence-2-large are read from its own config."""
    config = read_config(write(tmp_path, large))
    assert config.vision.dims == (256, 512, 1024, 2048)
    assert config.vision.depths == (1, 1, 9, 1)
    assert config.text.encoder == StackConfig(layers=12, heads=16, ffn_dim=4096)
    assert (config.text.vocab_size, config.text.max_positions) == (51289, 4096)
    assert config.generation == GenerationDefaults(3, 3, True, 1.0, 0, 2)


def test_encoder_and_decoder_sizes_and_groups_are_read_apart(tmp_path: Path) -> None:
    """Encoder and decoder have separate sizes, and heads and groups separate counts."""
    make_native(tmp_path)
    config = read_config(tmp_path)
    assert (config.text.encoder, config.text.decoder) == (StackConfig(1, 2, 40), StackConfig(2, 4, 72))
    assert (config.vision.heads, config.vision.groups) == ((1, 2, 2, 4), (2, 1, 4, 8))


def test_the_originals_generation_config_is_not_used(large: dict[str, Any], tmp_path: Path) -> None:
    """The original's generation_config.json is ignored, as Microsoft's own code ignores it."""
    write(tmp_path, {"num_beams": 7, "early_stopping": False}, "generation_config.json")
    generation = read_config(write(tmp_path, large)).generation
    assert (generation.num_beams, generation.early_stopping) == (3, True)


def test_a_native_generation_config_is_used_where_the_text_config_is_silent(tmp_path: Path) -> None:
    """A native generation_config.json gives what the text config leaves out."""
    make_native(tmp_path)
    write(
        tmp_path,
        {"num_beams": 4, "no_repeat_ngram_size": 0, "forced_eos_token_id": 2},
        "generation_config.json",
    )
    generation = read_config(tmp_path).generation
    assert generation == GenerationDefaults(4, 0, True, 1.0, 0, 2)


@pytest.mark.parametrize(
    ("written", "temperature", "top_k"), [({}, 1.0, 50), ({"temperature": 0.5, "top_k": 7}, 0.5, 7)]
)
def test_a_checkpoints_settings_for_sampling_are_read(
    tmp_path: Path, written: dict[str, Any], temperature: float, top_k: int
) -> None:
    """A wrong sampling setting counts as absent, since only sampling uses it; a wrong penalty would spoil
    all answers, and is refused."""
    make_native(tmp_path)
    write(tmp_path, {"top_p": -1, "repetition_penalty": 1.5, **written}, "generation_config.json")
    generation = read_config(tmp_path).generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (temperature, top_k, 1.0)
    assert generation.repetition_penalty == 1.5
    write(tmp_path, {"repetition_penalty": 0}, "generation_config.json")
    with pytest.raises(CheckpointError, match="repetition_penalty is 0, expected a number from"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "bart", "model_type is 'bart', expected 'florence2'"),
        ("vision_config", None, "vision_config is None, expected an object"),
        (
            "vision_config.patch_stride",
            [4, 2, 2, 1],
            r"vision_config.patch_stride is \[4, 2, 2, 1\], supported",
        ),
        ("vision_config.patch_prenorm", [True] * 4, "vision_config.patch_prenorm"),
        ("vision_config.dim_embed", [256, 512, 1024], "vision_config.dim_embed is .* expected 4 integers"),
        ("vision_config.num_heads", [7, 16, 32, 64], "num_heads .* does not divide"),
        ("vision_config.window_size", 0, "vision_config.window_size is 0, expected an integer from 1 to 64"),
        ("vision_config.image_feature_source", ["last_frame"], "image_feature_source"),
        ("vision_config.image_pos_embed.type", "sine", "image_pos_embed.type"),
        ("vision_config.projection_dim", 512, "projection_dim is 512, but text_config.d_model is 1024"),
        (
            "text_config.normalize_before",
            True,
            "text_config.normalize_before is True, supported is only False",
        ),
        ("text_config.activation_function", "tanh", "activation_function is 'tanh', supported: gelu"),
        ("text_config.decoder_layers", "12", "text_config.decoder_layers is '12'"),
        (
            "text_config.encoder_attention_heads",
            10,
            "encoder_attention_heads is 10, which does not divide d_model 1024",
        ),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    large: dict[str, Any], tmp_path: Path, path: str, value: object, message: str
) -> None:
    """An unsupported value is refused with its field and the supported values."""
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, changed(large, path, value)))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), ("{", "not valid JSON"), ("[]", "list")]
)
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    """A missing or broken config.json is refused."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)


NATIVE_SETTINGS = [
    ("num_beams", 12, "expected an integer from 1 to 8"),
    ("num_beams", 0, "expected an integer from 1 to 8"),
    ("num_beams", "3", "expected an integer from 1 to 8"),
    ("num_beams", True, "expected an integer from 1 to 8"),
    ("no_repeat_ngram_size", -1, "expected an integer from 0 to 4096"),
    ("early_stopping", "always", 'expected true, false or "never"'),
    ("early_stopping", 1, 'expected true, false or "never"'),
    ("length_penalty", float("nan"), "expected a number from -10.0 to 10.0"),
    ("length_penalty", "1", "expected a number from -10.0 to 10.0"),
    ("forced_eos_token_id", "2", "expected a token id from 0 to"),
    ("forced_bos_token_id", [0], "expected a token id from 0 to"),
    ("forced_bos_token_id", 10**6, "expected a token id from 0 to"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), NATIVE_SETTINGS)
@pytest.mark.parametrize("where", ["config.json: text_config.", "generation_config.json: "])
def test_a_setting_that_no_request_may_have_is_refused_with_file_field_and_value(
    native: dict[str, Any], tmp_path: Path, where: str, name: str, value: object, allowed: str
) -> None:
    """A setting outside the bounds for requests is refused with file, field and value."""
    if where.startswith("generation"):
        write(tmp_path, changed(native, f"text_config.{name}", None))
        write(tmp_path, {name: value}, "generation_config.json")
    else:
        write(tmp_path, changed(native, f"text_config.{name}", value))
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path)
    assert f"{where}{name} is {value!r}, {allowed}" in str(refused.value)


@pytest.mark.parametrize("name", ["decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [[2], "2", -1, 10**6, 2.0])
def test_a_token_id_outside_the_vocabulary_is_refused(
    large: dict[str, Any], tmp_path: Path, name: str, value: object
) -> None:
    """A token id outside the vocabulary is refused with its range."""
    message = re.escape(f"text_config.{name} is {value!r}, expected a token id from 0 to 51288")
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, changed(large, f"text_config.{name}", value)))


def test_null_is_as_if_nothing_was_written(large: dict[str, Any], tmp_path: Path) -> None:
    """Null means the default, except for a forced id, where it means that no token is forced."""
    names = ("num_beams", "no_repeat_ngram_size", "early_stopping", "length_penalty", "eos_token_id")
    nulls = dict.fromkeys((*names, "pad_token_id", "tie_word_embeddings", "forced_eos_token_id"))
    config = read_config(write(tmp_path, large | {"text_config": large["text_config"] | nulls}))
    assert config.generation == GenerationDefaults(3, 3, True, 1.0, 0, None)
    assert (config.text.eos_id, config.text.pad_id, config.text.tied_head) == (2, 1, True)


def test_null_in_one_file_leaves_the_other_its_say(native: dict[str, Any], tmp_path: Path) -> None:
    """Null in one file leaves the decision to the other."""
    silent = native | {"text_config": native["text_config"] | {"num_beams": None}}
    write(write(tmp_path, silent), {"num_beams": 5, "length_penalty": None}, "generation_config.json")
    generation = read_config(tmp_path).generation
    assert (generation.num_beams, generation.length_penalty) == (5, 1.0)


@pytest.mark.parametrize("value", [True, False, "never"])
def test_early_stopping_has_the_three_values_of_transformers(
    large: dict[str, Any], tmp_path: Path, value: bool | str
) -> None:
    """early_stopping may be true, false or "never"."""
    config = read_config(write(tmp_path, changed(large, "text_config.early_stopping", value)))
    assert config.generation.early_stopping == value


def test_a_checkpoint_may_say_what_a_request_may() -> None:
    """The bounds for checkpoints equal those for requests; they are written twice, since the model knows
    no requests."""
    bounds = GenerationParameters.model_json_schema()["properties"]
    for name, least, most in (
        ("num_beams", 1, MAX_BEAMS),
        ("no_repeat_ngram_size", 0, MAX_NGRAM),
        ("length_penalty", -MAX_PENALTY, MAX_PENALTY),
    ):
        allowed = bounds[name]["anyOf"][0]
        assert (allowed["minimum"], allowed["maximum"]) == (least, most)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.qkv_bias", "false", "vision_config.qkv_bias is 'false', expected true or false"),
        ("vision_config.mlp_ratio", "4", "vision_config.mlp_ratio is '4', expected a number from 0.01 to 64"),
        ("text_config.tie_word_embeddings", 1, "text_config.tie_word_embeddings is 1, expected true or"),
        ("tie_word_embeddings", "no", "config.json: tie_word_embeddings is 'no', expected true or false"),
    ],
)
def test_flags_and_ratios_are_taken_as_json_has_them(
    large: dict[str, Any], tmp_path: Path, path: str, value: object, message: str
) -> None:
    """A flag or ratio of another JSON type is refused."""
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, changed(large, path, value)))
