"""The goldens made by Microsoft's original code, and small models for tests."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.device.beams.reference import TokenRules
from florence.engine.request import GenerationOptions
from florence.model.florence2 import Florence2Model
from florence.model.kernels.linear import pack
from florence.model.vision import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GOLDEN_VOCAB = 51289


def imagenet_normalize() -> Normalize:
    """The normalisation of every published Florence-2."""
    return Normalize(MEAN, STD, 1 / 255)


def load_float32(directory: Path, vocab_size: int = GOLDEN_VOCAB) -> Florence2Model:
    """Load a checkpoint on the CPU in float32."""
    config, cpu = read_config(directory), torch.device("cpu")
    return load_model(directory, config, imagenet_normalize(), vocab_size, cpu, torch.float32)


def remember_pictures(model: Florence2Model) -> Florence2Model:
    """Make `model.encode_images` run each picture through the tower only once."""
    encode, seen = model.encode_images, dict[bytes, Tensor]()

    def remembered(pixels: Tensor) -> Tensor:
        digests = [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pixels]
        for digest, picture in zip(digests, pixels, strict=True):
            if digest not in seen:
                seen[digest] = encode(picture[None])
        return torch.cat([seen[digest] for digest in digests])

    model.encode_images = remembered  # type: ignore[method-assign]
    return model


class Goldens:
    """One set of goldens; its NOTES.md explains each value."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self._pixels: dict[str, NDArray[np.uint8]] = {}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The content of golden.json."""
        values: dict[str, Any] = json.loads((self.folder / "golden.json").read_text(encoding="utf-8"))
        return values

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of golden.safetensors."""
        return load_file(self.folder / "golden.safetensors")

    @cached_property
    def model(self) -> Florence2Model:
        """The checkpoint, packed as it is served.

        Its `encode_images` remembers pictures, since the tower is slow and has tests of its own.
        """
        model = load_float32(self.checkpoint)
        pack(model)
        return remember_pictures(model)

    def path(self, name: str) -> Path:
        """The path of an input picture."""
        return self.folder / "inputs" / name

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """The input picture, resized as the original does it."""
        if name not in self._pixels:
            picture = Image.open(self.path(name)).convert("RGB")
            self._pixels[name] = np.array(picture.resize((768, 768), Image.Resampling.BICUBIC))
        return self._pixels[name]

    def single_cases(self) -> list[tuple[dict[str, Any], int]]:
        """(case, row) of every generation whose row was not padded: padding changes the original's
        answers."""
        return [
            (case, row)
            for case in self.values["generation"]
            for row, ids in enumerate(case["input_ids"])
            if len(case["input_ids"]) == 1 or 1 not in ids
        ]


def options_of(case: dict[str, Any]) -> GenerationOptions:
    """The options that the original used in a generation case."""
    used = case["effective"]
    return GenerationOptions(
        num_beams=used["num_beams"],
        max_new_tokens=used["max_length"] - 1,
        min_new_tokens=used["min_length"],
        no_repeat_ngram_size=used["no_repeat_ngram_size"],
        early_stopping=used["early_stopping"],
        length_penalty=used["length_penalty"],
    )


def rules_of(case: dict[str, Any]) -> TokenRules:
    """The token rules of a generation case, with the tokens that the original forced."""
    used = case["effective"]
    return TokenRules(2, 2, used["forced_bos_token_id"], used["forced_eos_token_id"])


def sequence_of(case: dict[str, Any], row: int) -> list[int]:
    """The best sequence of a row, without the padding after it."""
    sequence: list[int] = case["sequences"][row * case["effective"]["num_return_sequences"]]
    length = len(sequence)
    while sequence[length - 1] == 1:
        length -= 1
    return sequence[:length]
