"""Input sizes other than 768: partly filled windows, and positions, as in the original implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from goldens import load_float32
from native import make_config, make_timm, native_logits
from PIL import Image
from serving import ROOT
from tiny import make_native

from florence import Florence2
from florence.images.preprocess import InputSize, resize
from florence.model.davit import DaViT

SIDES = (32, 64, 96, 224)


@pytest.mark.parametrize("window", [3, 12])
@torch.inference_mode()
def test_logits_at_any_size_are_those_of_transformers(tmp_path: Path, window: int) -> None:
    """Logits at any size equal those of transformers, for windows larger than a stage's cells and for small
    ones."""
    native = make_native(tmp_path, vision_config={"window_size": window})
    model = load_float32(tmp_path, native.config.text_config.vocab_size)
    prompt, forced = [0, 71, 412, 33, 9, 2], [2, 0, 17, 300, 999, 5]
    for side in SIDES:
        pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
        expected = native_logits(native, model.vision.normalize(pixels).contiguous(), prompt, forced)
        encoded = model.encode(model.encode_images(pixels), torch.tensor([prompt]))
        cross_kv = model.language.decoder.cross_kv(encoded)
        states, _ = model.language.decode(torch.tensor([forced]), None, cross_kv)
        torch.testing.assert_close(model.language.logits(states), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [5, 12])
@torch.inference_mode()
def test_features_at_any_size_are_those_of_timm(window: int) -> None:
    """The tower's features at any size equal timm's."""
    config = make_config(window)
    timm_tower, tower = make_timm(config), DaViT(config).eval()
    tower.load_state_dict(timm_tower.state_dict(), strict=True)
    for side in SIDES:
        values = torch.randn(1, 3, side, side)
        torch.testing.assert_close(tower(values), timm_tower(values), atol=2e-4, rtol=1e-4)


def test_a_picture_of_the_input_size_is_not_changed() -> None:
    """A picture of the input size is not resized, so FLORENCE_INPUT_SIZE can replace the original's
    `do_resize: false`."""
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    assert resize(picture, InputSize(64, 64, 3)).tobytes() == picture.tobytes()


def test_the_input_size_is_told_and_makes_fewer_picture_tokens() -> None:
    """A checkpoint answers at another input size, and `info` shows that size."""
    with Florence2.load("demo", device="cpu", dtype="float32", threads=1, input_size=64) as model:
        assert model.info()["picture_size"] == [64, 64]
        assert model.run(ROOT / "data" / "busy_00.jpg", "<CAPTION>").token_ids
