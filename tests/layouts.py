"""The demo checkpoint in each layout of files that is in use; each function makes a folder in a moment.

Names and configuration of Microsoft's layout are written here again, so that they check the product's
mapping.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from serving import ROOT
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

DEMO = ROOT / "florence" / "demo" / "checkpoint"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WRONG_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 1}
"""The wrong ids of an early configuration of Microsoft's, which a dozen fine-tunes have copied."""

Tensors = dict[str, Tensor]

_NAMES = (  # replacements, applied in order, from transformers' names to Microsoft's
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
    (r"^model\.multi_modal_projector\.image_projection\.weight$", "image_projection"),
    (r"^model\.multi_modal_projector\.", ""),
    (r"\.convs\.(\d)\.conv\.", r".convs.\1.proj."),
    (r"\.spatial_block\.norm1\.", ".spatial_block.window_attn.norm."),
    (r"\.channel_block\.norm1\.", ".channel_block.channel_attn.norm."),
    (r"\.norm2\.", ".ffn.norm."),
    (r"\.(window_attn|channel_attn)\.(qkv|proj)", r".\1.fn.\2"),
    (r"\.ffn\.fc", ".ffn.fn.net.fc"),
    (r"\.conv(\d)\.", r".conv\1.fn.dw."),
)


def original_name(name: str) -> str:
    """Microsoft's name of transformers' tensor."""
    for old, new in _NAMES:
        name = re.sub(old, new, name)
    return name


def native_tensors() -> Tensors:
    """The demo's tensors in float32."""
    return {name: tensor.float() for name, tensor in load_file(DEMO / WEIGHTS).items()}


def original_tensors() -> Tensors:
    """The demo's tensors in Microsoft's layout: without the picture's token, with the bias of the logits."""
    tensors = {original_name(name): tensor for name, tensor in native_tensors().items()}
    shared = tensors["language_model.model.shared.weight"][:-1].clone()
    return tensors | {
        "image_projection": tensors["image_projection"].T.contiguous(),
        "language_model.model.shared.weight": shared,
        "language_model.lm_head.weight": shared.clone(),
        "language_model.final_logits_bias": torch.zeros(1, len(shared)),
    }


def original_config() -> dict[str, Any]:
    """The config.json of Microsoft's layout, with the wrong top-level ids that many files have."""
    native = json.loads((DEMO / "config.json").read_text())
    vision = native["vision_config"]
    positions, frames = vision.pop("max_position_embeddings"), vision.pop("max_temporal_embeddings")
    vision |= {
        "dim_embed": vision.pop("embed_dim"),
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": positions},
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": frames},
    }
    text = native["text_config"] | {"vocab_size": native["text_config"]["vocab_size"] - 1}
    return {"model_type": "florence2", **WRONG_IDS, "vision_config": vision, "text_config": text}


def tokenizer(added: bool = True) -> dict[str, Any]:
    """The tokenizer.json of Microsoft's layout, with or without Florence-2's tokens."""
    content: dict[str, Any] = json.loads((DEMO / "tokenizer.json").read_text())
    rows = content["added_tokens"]
    first = next(row["id"] for row in rows if row["content"] == "<od>")
    kept = [row for row in rows if row["content"] != "<image>" and (added or row["id"] < first)]
    return content | {"added_tokens": kept}


def write(directory: Path, name: str, content: object, *, encoding: str = "utf-8") -> None:
    """Write a JSON file."""
    (directory / name).write_text(json.dumps(content, indent=1), encoding=encoding)


def original(directory: Path, dtype: torch.dtype = torch.float32, *, bare: bool = False) -> Path:
    """Write Microsoft's layout; `bare`: configuration and weights only."""
    directory.mkdir(parents=True)
    write(directory, "config.json", original_config())
    save_file({name: tensor.to(dtype) for name, tensor in original_tensors().items()}, directory / WEIGHTS)
    if not bare:
        write(directory, "tokenizer.json", tokenizer())
        shutil.copy(DEMO / "preprocessor_config.json", directory)
    return directory


def native(directory: Path, change: Callable[[Tensors], Mapping[str, Tensor]] = dict) -> Path:
    """Write transformers' layout, with changed tensors."""
    shutil.copytree(DEMO, directory)
    save_file(dict(change(native_tensors())), directory / WEIGHTS, {"format": "pt"})
    return directory


def promptgen(directory: Path) -> Path:
    """A layout with added_tokens.json, vocab.json and a generation configuration with wrong ids."""
    original(directory)
    write(directory, "vocab.json", tokenizer()["model"]["vocab"])
    added = {row["content"]: row["id"] for row in tokenizer()["added_tokens"]}
    write(directory, "added_tokens.json", added)
    write(directory, "generation_config.json", {"num_beams": 7, "early_stopping": False, **WRONG_IDS})
    return directory


def cogflorence(directory: Path) -> Path:
    """A float16 layout whose tokenizer lacks Florence-2's tokens."""
    original(directory, torch.float16)
    write(directory, "tokenizer.json", tokenizer(added=False))
    write(directory, "tokenizer_config.json", {"model_max_length": 1024})
    write(directory, "vocab.json", tokenizer()["model"]["vocab"])
    write(directory, "generation_config.json", {"num_beams": 3})
    return directory


def tf_id(directory: Path) -> Path:
    """A layout that also has a pickle, which must not be opened."""
    original(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")
    return directory


def docvqa(directory: Path) -> Path:
    """A layout with a huge special_tokens_map.json and wrong ids."""
    original(directory)
    write(directory, "special_tokens_map.json", {"additional_special_tokens": ["<od>"] * 4000})
    write(directory, "processor_config.json", {"processor_class": "Florence2Processor"})
    write(directory, "generation_config.json", WRONG_IDS)
    return directory


def castollux(directory: Path) -> Path:
    """A layout in bfloat16."""
    return original(directory, torch.bfloat16)


def two_files(directory: Path) -> Path:
    """A layout with vocab.json and merges.txt, both with CRLF and a byte order mark."""
    original(directory)
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "tokenizer.json").unlink()
    write(directory, "vocab.json", model["vocab"], encoding="utf-8-sig")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    text = "\r\n".join(["#version: 0.2", *pairs, ""])
    (directory / "merges.txt").write_bytes(text.encode("utf-8-sig"))
    return directory


def windows(directory: Path) -> Path:
    """A layout whose JSON files have CRLF and a byte order mark."""
    native(directory)
    for file in directory.glob("*.json"):
        lines = file.read_text(encoding="utf-8").splitlines()
        file.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    return directory


def omniparser(directory: Path) -> Path:
    """The captioner's three files, in a subfolder of its repository."""
    folder = original(directory / "icon_caption", bare=True)
    write(folder, "generation_config.json", {"num_beams": 5, **WRONG_IDS})
    return folder


def model_only(directory: Path) -> Path:
    """A layout with configuration and weights only."""
    return original(directory, bare=True)


def compiled(directory: Path) -> Path:
    """A layout whose tensor names have torch.compile's prefix."""
    return native(directory, lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()})


def wrapped_in_a_row(directory: Path) -> Path:
    """A layout with the prefixes of DDP, torch.compile and peft, and one part compiled alone."""

    def rename(name: str) -> str:
        return "module._orig_mod.base_model.model." + name.replace("decoder.", "decoder._orig_mod.")

    return native(directory, lambda tensors: {rename(name): value for name, value in tensors.items()})


def sharded(directory: Path) -> Path:
    """A layout whose weights are in two shards."""
    native(directory)
    tensors = native_tensors()
    (directory / WEIGHTS).unlink()
    shard_of = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in set(shard_of.values()):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, directory / shard)
    write(directory, INDEX, {"metadata": {}, "weight_map": shard_of})
    return directory


def added_tokens(directory: Path) -> Path:
    """A layout with two tokens of a fine-tune after all others, and an embedding with two more rows."""

    def grow(tensors: Tensors) -> Tensors:
        name = "model.language_model.shared.weight"
        mean = tensors[name].mean(0, keepdim=True)
        return tensors | {name: torch.cat([tensors[name], mean, mean])}

    native(directory, grow)
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<invoice>", "</invoice>")])
    backend.save(str(directory / "tokenizer.json"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["vocab_size"] += 2
    write(directory, "config.json", config)
    return directory


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (
        promptgen,
        cogflorence,
        tf_id,
        docvqa,
        castollux,
        two_files,
        windows,
        omniparser,
        model_only,
        compiled,
        wrapped_in_a_row,
        sharded,
        added_tokens,
    )
}
"""Functions that make a layout in a new directory and return the checkpoint's folder."""

BARE = ("omniparser", "model_only")
"""Layouts without tokenizer and preprocessor."""
