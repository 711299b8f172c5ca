"""`config.json` is honoured or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_native

from florence.errors import CheckpointError
from florence.model.config import GenerationDefaults, StackConfig, read_config


@pytest.fixture(scope="session")
def large(shared: Path) -> dict[str, Any]:
    """The real config.json of Florence-2-large, in the original schema."""
    values: dict[str, Any] = json.loads((shared / "florence2-large" / "config.json").read_text())
    return values


def write(directory: Path, values: object, name: str = "config.json") -> Path:
    (directory / name).write_text(json.dumps(values))
    return directory


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of nested objects with one value put in place (or taken out, for None)."""
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
    config = read_config(write(tmp_path, large))
    assert config.vision.dims == (256, 512, 1024, 2048)
    assert config.vision.depths == (1, 1, 9, 1)
    assert config.text.encoder == StackConfig(layers=12, heads=16, ffn_dim=4096)
    assert (config.text.vocab_size, config.text.max_positions) == (51289, 4096)
    assert config.generation == GenerationDefaults(3, 3, True, 1.0, 0, 2)


def test_encoder_and_decoder_sizes_and_groups_are_read_apart(tmp_path: Path) -> None:
    make_native(tmp_path)
    config = read_config(tmp_path)
    assert (config.text.encoder, config.text.decoder) == (StackConfig(1, 2, 40), StackConfig(3, 4, 72))
    assert (config.vision.heads, config.vision.groups) == ((1, 2, 2, 4), (2, 1, 4, 8))


def test_the_originals_generation_config_is_not_used(large: dict[str, Any], tmp_path: Path) -> None:
    """Microsoft's file says early_stopping false, but its own code never reads it."""
    write(tmp_path, {"num_beams": 7, "early_stopping": False}, "generation_config.json")
    generation = read_config(write(tmp_path, large)).generation
    assert (generation.num_beams, generation.early_stopping) == (3, True)


def test_a_native_generation_config_is_used_where_the_text_config_is_silent(tmp_path: Path) -> None:
    make_native(tmp_path)
    write(
        tmp_path,
        {"num_beams": 4, "no_repeat_ngram_size": 0, "forced_eos_token_id": 2},
        "generation_config.json",
    )
    generation = read_config(tmp_path).generation
    assert generation == GenerationDefaults(4, 0, True, 1.0, 0, 2)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "bart", "model_type 'bart', expected 'florence2'"),
        ("vision_config", None, "no object 'vision_config'"),
        (
            "vision_config.patch_stride",
            [4, 2, 2, 1],
            r"vision_config.patch_stride is \[4, 2, 2, 1\], supported",
        ),
        ("vision_config.patch_prenorm", [True] * 4, "vision_config.patch_prenorm"),
        ("vision_config.dim_embed", [256, 512, 1024], "vision_config.dim_embed .* 4 positive integers"),
        ("vision_config.num_heads", [7, 16, 32, 64], "num_heads .* does not divide"),
        ("vision_config.window_size", 0, "vision_config.window_size is 0, expected a positive integer"),
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
            "encoder_attention_heads 10 does not divide d_model 1024",
        ),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    large: dict[str, Any], tmp_path: Path, path: str, value: object, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, changed(large, path, value)))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), ("{", "not valid JSON"), ("[]", "list")]
)
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)
