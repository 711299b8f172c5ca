"""The network agrees with Microsoft's original code, stage by stage, within float32 rounding.

Processors sum in different orders, so rounding differs between them by up to a factor of three.
"""

from __future__ import annotations

import pytest
import torch
from goldens import Goldens

IMAGES = range(8)


@pytest.mark.parametrize("index", IMAGES)
def test_normalised_pixels_are_bitwise_the_originals(goldens: Goldens, index: int) -> None:
    """Normalised pixels equal the original's, bit for bit."""
    pixels = torch.from_numpy(goldens.pixels(goldens.values["images"][index]["file"]))[None]
    values = goldens.model.vision.normalize(pixels)
    assert torch.equal(values[0, :, 8::16, 8::16], goldens.tensors[f"pixel_values.sample.{index}"])


@torch.inference_mode()
@pytest.mark.parametrize("index", IMAGES)
def test_vision_features_are_the_originals(goldens: Goldens, index: int) -> None:
    """The features of the tower and of the projector are the original's."""
    pixels = torch.from_numpy(goldens.pixels(goldens.values["images"][index]["file"]))[None]
    vision = goldens.model.vision
    features = vision.tower(vision.normalize(pixels))  # [1, dim, 24, 24]
    sample = features[0].flatten(1).T[::8, ::4]
    torch.testing.assert_close(sample, goldens.tensors[f"vision_tower.sample.{index}"], atol=15e-5, rtol=0)
    tokens = vision.projector(features)[0]
    torch.testing.assert_close(tokens, goldens.tensors[f"image_features.{index}"], atol=6e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("index", [0, 1])
def test_encoder_and_logits_are_the_originals(goldens: Goldens, index: int) -> None:
    """Encoder states, decoder states and logits are the original's, decoded at once or token by token."""
    facts, language = goldens.values["encoder_decoder"], goldens.model.language
    length = sum(facts["processor_attention_mask"][index])
    prompt = torch.tensor([facts["input_ids"][index][:length]])
    encoded = language.encode(goldens.tensors[f"image_features.{index}"][None], prompt)
    torch.testing.assert_close(encoded, goldens.tensors[f"encoder.single.{index}"], atol=15e-5, rtol=0)

    cross_kv = language.decoder.cross_kv(encoded)
    forced = torch.tensor([facts["teacher_forced_decoder_input_ids"]])
    states, _ = language.decode(forced, None, cross_kv)
    torch.testing.assert_close(
        states, goldens.tensors[f"decoder.tf_hidden.single.{index}"], atol=3e-4, rtol=0
    )
    logits = language.logits(states)[:, :, ::37]
    torch.testing.assert_close(logits, goldens.tensors[f"logits.tf_sample.single.{index}"], atol=3e-4, rtol=0)

    first, past = language.decode(forced[:, :1], None, cross_kv)
    second, _ = language.decode(forced[:, 1:2], past, cross_kv)
    for name, states in (("first", first), ("second", second)):
        expected = goldens.tensors[f"logits.{name}.single.{index}"]
        torch.testing.assert_close(language.logits(states)[:, -1], expected, atol=3e-4, rtol=0)


@torch.inference_mode()
def test_a_masked_batch_is_the_originals_single_requests(goldens: Goldens) -> None:
    """A request in a padded batch gets the encoder and decoder states that it gets alone."""
    facts = goldens.values["encoder_decoder"]
    pictures = torch.stack([goldens.tensors["image_features.0"], goldens.tensors["image_features.1"]])
    prompt_mask = torch.tensor(facts["processor_attention_mask"], dtype=torch.bool)
    mask = torch.cat([torch.ones(2, pictures.shape[1], dtype=torch.bool), prompt_mask], dim=1)
    language = goldens.model.language
    encoded = language.encode(pictures, torch.tensor(facts["input_ids"]), mask)
    forced = torch.tensor([facts["teacher_forced_decoder_input_ids"]])
    for row in range(2):
        alone = goldens.tensors[f"encoder.single.{row}"][0]
        torch.testing.assert_close(encoded[row, : len(alone)], alone, atol=15e-5, rtol=0)
        expected = goldens.tensors[f"decoder.tf_hidden.single.{row}"][0]
        own = encoded[row : row + 1, : int(mask[row].sum())]
        states, _ = language.decode(forced, None, language.decoder.cross_kv(own))
        torch.testing.assert_close(states[0], expected, atol=3e-4, rtol=0)
