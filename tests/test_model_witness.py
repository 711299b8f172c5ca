"""transformers' native class gives the same numbers on random weights: an independent check beside the
goldens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from goldens import load_float32
from native import BASE, RULES, native_logits
from tiny import make_native
from transformers import Florence2ForConditionalGeneration

from florence.engine.config import EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import generate_alone
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import GenerationOptions, Request
from florence.model.florence2 import Florence2Model
from florence.model.kernels.linear import pack
from florence.runtime.futures import generate

SIDES = {"tiny": 64, "base": 768}  # of a picture, pixels
END = 2.5  # the length of the end token's row
PROMPTS = ((0, 71, 412, 33, 2), (0, 9, 8, 7, 6, 5, 4, 3, 2), (0, 500, 2))

PairOf = Callable[[str], tuple[Florence2ForConditionalGeneration, Florence2Model]]


def random_pixels(size: int, seed: int = 7) -> np.ndarray:
    """A random picture of this side."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_logits_are_those_of_transformers(pair_of: PairOf, size: str) -> None:
    """Logits equal transformers', for a tiny model whose sizes all differ and for the widths of
    Florence-2-base at 768 x 768."""
    native, model = pair_of(size)
    pixels = torch.from_numpy(random_pixels(SIDES[size]))[None]
    prompt, forced = [0, 71, 412, 33, 9, 2], [2, 0, 17, 300, 999, 5]
    expected = native_logits(native, model.vision.normalize(pixels).contiguous(), prompt, forced)

    encoded = model.encode(model.encode_images(pixels), torch.tensor([prompt]))
    states, _ = model.language.decode(torch.tensor([forced]), None, model.language.decoder.cross_kv(encoded))
    ours = model.language.logits(states)
    assert expected.std() > 0.1  # the weights are not trivial
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def native_ids(native: Florence2ForConditionalGeneration, model: Florence2Model, asked: Request) -> list[int]:
    """The ids that transformers' own `generate` gives for one request with the same settings."""
    options = asked.options
    values = model.vision.normalize(torch.from_numpy(asked.pixels)[None]).contiguous()
    picture_tokens = 1 + values.shape[-1] // 32 * (values.shape[-2] // 32)
    ids = torch.tensor([[native.config.image_token_id] * picture_tokens + [*asked.prompt_ids]])
    search = {"early_stopping": options.early_stopping, "length_penalty": options.length_penalty}
    generated = native.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=values,
        do_sample=False,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        **(search if options.num_beams > 1 else {}),
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
    token_ids: list[int] = generated[0].tolist()
    return token_ids


@torch.inference_mode()
@pytest.mark.parametrize("num_beams", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(
    ("length_penalty", "ngram", "min_new_tokens"), [(1.0, 3, 0), (0.0, 0, 5), (2.0, 2, 0), (-1.0, 3, 4)]
)
def test_generated_ids_are_those_of_transformers(
    pair_of: PairOf,
    num_beams: int,
    early_stopping: bool,
    length_penalty: float,
    ngram: int,
    min_new_tokens: int,
) -> None:
    """The plain search gives transformers' ids, one request at a time.

    Where short answers are at a disadvantage, transformers 5 and the original (the goldens) differ for a
    search that ends early: the original also counts the candidate that has just ended among those that could
    still win. In these cases sequences end at their limit.
    """
    native, model = pair_of("tiny, without end" if early_stopping is False and length_penalty > 0 else "tiny")
    options = GenerationOptions(num_beams, 20, min_new_tokens, ngram, early_stopping, length_penalty)  # type: ignore[arg-type]
    prompt = PROMPTS[(num_beams + min_new_tokens) % 3]
    asked = Request(random_pixels(SIDES["tiny"]), prompt, options)
    assert generate_alone(model, asked, RULES).token_ids == native_ids(native, model, asked)


@pytest.mark.slow
def test_the_engine_gives_transformers_ids_at_real_widths(pair_of: PairOf) -> None:
    """The engine gives transformers' ids for concurrent requests, with the CPU's kernel where there is one
    and small pictures; `benchmarks/exactness.py` checks more."""
    native, model = pair_of("base")
    asked = [
        Request(random_pixels(384, seed=beams), prompt, GenerationOptions(beams, 6, 0, 3, True, 1.0))
        for beams, prompt in zip((1, 5), PROMPTS, strict=False)
    ]
    head_dim = model.config.text.decoder_head_dim
    runner = Runner(model, 4, backend=Backend.for_device(model.device, model.dtype, head_dim))
    engine = Engine(
        runner,
        EngineConfig(max_batch_size=4, encode_budget_ms=1, max_new_tokens=100, max_prompt_tokens=100),
    )
    answers = [future.result() for future in [generate(engine, each) for each in asked]]
    engine.close()
    for each, answer in zip(asked, answers, strict=True):
        assert list(answer.token_ids) == native_ids(native, model, each)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> PairOf:
    """A function that gives transformers' model and ours of one checkpoint; ours is packed as for serving."""

    @cache
    def make(size: str) -> tuple[Florence2ForConditionalGeneration, Florence2Model]:
        directory = tmp_path_factory.mktemp(size)
        end = 1.0 if size == "tiny, without end" else END
        native = make_native(directory, end=end, **(BASE if size == "base" else {}))
        model = load_float32(directory, native.config.text_config.vocab_size)
        pack(model)
        return native, model

    return make
