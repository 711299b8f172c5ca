"""transformers' native class, on random weights, gives the same numbers: a second witness beside the
goldens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native
from transformers import Florence2ForConditionalGeneration

from florence.engine.reference import TokenRules, generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.model.florence2 import Florence2Model

SIZE = 64  # pixels: 2 x 2 cells
PICTURE_TOKENS = 5
RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)

BASE = {
    "vision_config": {
        "embed_dim": [128, 256, 512, 1024],
        "num_heads": [4, 8, 16, 32],
        "num_groups": [4, 8, 16, 32],
        "depths": [1, 1, 9, 1],
        "window_size": 12,
        "projection_dim": 768,
    },
    "text_config": {
        "vocab_size": 51289,
        "d_model": 768,
        **{f"{side}_layers": 6 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 12 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 3072 for side in ("encoder", "decoder")},
        "max_position_embeddings": 1024,
    },
}


@torch.inference_mode()
def native_logits(
    native: Florence2ForConditionalGeneration, pixels: torch.Tensor, prompt: list[int], forced: list[int]
) -> torch.Tensor:
    """Teacher-forced logits of transformers' class for values [1, 3, height, width]."""
    picture_tokens = 1 + pixels.shape[-1] // 32 * (pixels.shape[-2] // 32)
    ids = torch.tensor([[native.config.image_token_id] * picture_tokens + prompt])
    output = native(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        decoder_input_ids=torch.tensor([forced]),
    )
    logits: torch.Tensor = output.logits
    return logits


def random_pixels(size: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", ["tiny", pytest.param("base", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Tiny with every size different from its neighbour, and Florence-2-base's real sizes at 768 x 768."""
    native = make_native(tmp_path, **(BASE if case == "base" else {}))
    vocab = native.config.text_config.vocab_size
    model = load_float32(tmp_path, vocab)
    pixels = torch.from_numpy(random_pixels(SIZE if case == "tiny" else 768))[None]
    prompt, forced = [0, 71, 412, 33, 9, 2], [2, 0, 17, 300, 999, 5]
    expected = native_logits(native, model.vision.normalize(pixels).contiguous(), prompt, forced)

    encoded = model.encode(model.look(pixels), torch.tensor([prompt]))
    states, _ = model.language.decode(torch.tensor([forced]), None, model.language.decoder.cross(encoded))
    ours = model.language.logits(states)
    assert expected.std() > 0.1  # weights that say something
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("num_beams", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(
    ("length_penalty", "ngram", "fewest"), [(1.0, 3, 0), (0.0, 0, 5), (2.0, 2, 0), (-1.0, 3, 4)]
)
def test_generated_ids_are_those_of_transformers(
    native_pair: tuple[Florence2ForConditionalGeneration, Florence2Model],
    num_beams: int,
    early_stopping: bool,
    length_penalty: float,
    ngram: int,
    fewest: int,
) -> None:
    """transformers' own `generate`, one request at a time, with the same settings."""
    native, model = native_pair
    prompt = [0, 71, 412, 33, 2]
    options = GenerationOptions(num_beams, 20, fewest, ngram, early_stopping, length_penalty)  # type: ignore[arg-type]
    pixels = random_pixels(SIZE)
    hypothesis = generate_alone(model, Request(pixels, tuple(prompt), options), RULES)

    ids = torch.tensor([[native.config.image_token_id] * PICTURE_TOKENS + prompt])
    values = model.vision.normalize(torch.from_numpy(pixels)[None]).contiguous()
    expected = native.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=values,
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=fewest,
        no_repeat_ngram_size=ngram,
        **({"early_stopping": early_stopping, "length_penalty": length_penalty} if num_beams > 1 else {}),
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
    assert hypothesis.token_ids == expected[0].tolist()


@pytest.fixture(scope="module")
def native_pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Florence2ForConditionalGeneration, Florence2Model]:
    """transformers' model and our model of one tiny checkpoint."""
    directory = tmp_path_factory.mktemp("native")
    native = make_native(directory)
    return native, load_float32(directory, native.config.text_config.vocab_size)
