"""Caches and masks change how the decoder computes, but not its results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from goldens import MEAN, STD, load_float32
from tiny import make_native

from florence.model.florence2 import Florence2Model
from florence.model.vision import Normalize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    return load_float32(directory, make_native(directory).config.text_config.vocab_size)


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [[1] * 9, [4, 1, 3, 1], [2, 7]])
def test_decoding_in_parts_equals_decoding_at_once(model: Florence2Model, cuts: list[int]) -> None:
    """Any division of the tokens gives the same states."""
    cross_kv = model.language.decoder.cross_kv(torch.randn(2, 11, 48))
    ids = torch.randint(0, 1000, (2, 9))
    whole, _ = model.language.decode(ids, None, cross_kv)
    past, parts = None, []
    for part in ids.split(cuts, dim=1):
        states, past = model.language.decode(part, past, cross_kv)
        parts.append(states)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_masked_positions_have_no_effect(model: Florence2Model) -> None:
    """Padding has no effect, so prompts of different lengths can share a batch."""
    picture, prompt = torch.randn(1, 5, 48), torch.tensor([[0, 70, 31, 2]])
    alone = model.encode(picture, prompt)
    padded = torch.cat([prompt, torch.tensor([[1, 999, 7]])], dim=1)
    mask = torch.arange(5 + 7)[None] < 5 + 4
    batch = model.encode(picture, padded, mask)
    torch.testing.assert_close(batch[:, :9], alone, atol=1e-5, rtol=1e-4)


def test_normalisation_is_the_originals_arithmetic_for_every_level() -> None:
    """Each level is normalised bit for bit as the original does: level / 255 in float64, rounded to
    float32, then mean and deviation in float32."""
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.stack([levels, levels, levels], axis=-1)[None]  # [1, 256, 3] as a picture one pixel high
    scaled = (pixels * (1 / 255)).astype(np.float32)
    expected = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    values = Normalize(MEAN, STD, 1 / 255)(torch.from_numpy(pixels[None]))  # [1, 3, 1, 256]
    assert np.array_equal(values[0, :, 0].T.numpy(), expected[0])
