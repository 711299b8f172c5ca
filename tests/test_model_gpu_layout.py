"""A GPU's layout of weights, with fused products and a padded head, gives the results of the checkpoint's
own layers. Checked on the CPU, where the same code runs, and on fake tensors of a GPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the path in PyTorch's documentation

from florence.checkpoint.weights import count_parameters
from florence.engine.device.beams.reference import generate_alone
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.model.adapters.lowrank import Factors, LowRankKernels, StackedAdapters
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cuda import twins
from florence.model.kernels.linear import Linear
from florence.model.kernels.plain import additive_mask, product_float32, product_unrounded
from florence.model.language import HEAD_MULTIPLE, Attention


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Florence2Model, Florence2Model]:
    """The model as loaded, and one in a GPU's layout."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    vocab = make_native(directory).config.text_config.vocab_size
    plain, fused = load_float32(directory, vocab), load_float32(directory, vocab)
    fused.language.lay_out_for_gpu(product_float32)
    return plain, fused


def test_answers_are_those_of_the_checkpoint_s_own_layers(
    models: tuple[Florence2Model, Florence2Model],
) -> None:
    """Token ids and scores stay; weights count once, and tied ones remain tied."""
    plain, fused = models
    rules, dice = Runner(plain, 1).rules, random.Random(0)
    with torch.inference_mode():
        for seed in range(12):
            pixels = np.random.default_rng(seed % 3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            options = GenerationOptions(1 + seed % 5, 20, 0, 3, True, 1.0)
            prompt = (0, *(dice.randrange(3, 1000) for _ in range(1 + seed)), 2)
            asked = Request(pixels, prompt, options)
            mine, theirs = (generate_alone(model, asked, rules) for model in (fused, plain))
            assert mine.token_ids == theirs.token_ids
            assert mine.score == pytest.approx(theirs.score, rel=1e-4)
    assert count_parameters(fused) == count_parameters(plain)
    assert fused.language.shared.weight is fused.language.lm_head.weight
    assert fused.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16)])
def test_a_padded_head_has_no_logits_for_its_padding(shape: tuple[int, ...]) -> None:
    """Rows of logits begin at multiples of the padding, and have exactly the vocabulary's logits."""
    head = Linear(16, 1100, bias=False).requires_grad_(False)
    weight, states = head.weight.clone(), torch.randn(shape)
    head.pad_outputs(HEAD_MULTIPLE, product_float32)
    logits = head.sums(states)
    assert logits is not None
    torch.testing.assert_close(logits, states @ weight.T)
    assert logits.shape == (*shape[:-1], 1100)
    assert logits.stride(-2) == 1152
    assert torch.equal(head(states), states @ weight.T)


def test_one_product_for_queries_keys_and_values() -> None:
    """One fused product equals three layers, for the decoder's rows and the encoder's sequences; masks may
    be boolean or additive."""
    torch.manual_seed(0)
    own, fused = Attention(24, 4).requires_grad_(False), Attention(24, 4).requires_grad_(False)
    fused.load_state_dict(own.state_dict())
    fused.fuse()
    for states in (torch.randn(5, 24), torch.randn(2, 6, 24)):
        for mine, theirs in zip(fused.project(states), own.project(states), strict=True):
            torch.testing.assert_close(mine, theirs)
    memory, other = fused.keys_values(states), own.keys_values(states)
    torch.testing.assert_close(memory.keys, other.keys)
    torch.testing.assert_close(memory.values, other.values)
    allowed = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    expected = own(states, other, allowed[:, None, None])
    added = additive_mask(allowed, torch.float32)[:, None, None]
    torch.testing.assert_close(fused.to_itself(states, added), expected)
    assert torch.equal(own.to_itself(states, added), expected)


@pytest.mark.parametrize(
    "kernels", [None, LowRankKernels(twins.shrink, twins.expand)], ids=["plain", "kernels"]
)
@pytest.mark.parametrize(
    "named", [("q_proj", "v_proj"), ("k_proj",), ("q_proj", "k_proj", "v_proj")], ids=str
)
@pytest.mark.parametrize("length", [1, 6])
def test_adapters_beside_one_product_are_each_rows_own(
    named: tuple[str, ...], length: int, kernels: LowRankKernels | None
) -> None:
    """Adapters of some or all of the three layers go to their own rows, of one state or several; other
    rows share slot 0. Queries, keys and values keep one row stride, which a kernel relies on."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"self_attn": Attention(24, 4).requires_grad_(False)})
    own: Any = model["self_attn"]
    own.fuse()
    index = torch.tensor([2, 0, 1, 2])
    states = torch.randn(4, 24) if length == 1 else torch.randn(4, length, 24)
    plain = [part.clone() for part in own.project(states)]
    bank = StackedAdapters(model, 2, kernels)
    factors = {
        slot: {name: Factors(torch.randn(5, 24), torch.randn(24, 5)) for name in named} for slot in (1, 2)
    }
    for slot, layers in factors.items():
        bank.place(slot, {f"self_attn.{name}": each for name, each in layers.items()})
    with torch.no_grad(), bank.applied(index):
        made = own.project(states)
    assert len({part.stride() for part in made}) == 1
    for name, part, before in zip(("q_proj", "k_proj", "v_proj"), made, plain, strict=True):
        for row, slot in enumerate(index.tolist()):
            expected = before[row]
            if slot and name in named:
                each = factors[slot][name]
                expected = expected + states[row] @ each.down.T @ each.up.T
            torch.testing.assert_close(part[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_and_logits_of_a_gpu_are_float32(dtype: torch.dtype) -> None:
    """Scores and logits are float32 as the product gives them; no later operation converts them."""
    with FakeTensorMode(), torch.device("cuda"):
        left, right = torch.empty(3, 5, 8, dtype=dtype), torch.empty(3, 8, 4, dtype=dtype)
        for pair in ((left, right), (left[0], right[0])):
            assert product_unrounded(*pair).dtype is torch.float32
        head = Linear(8, 100, bias=False)
        head.weight = torch.nn.Parameter(torch.empty(100, 8, dtype=dtype))
        head.pad_outputs(HEAD_MULTIPLE, product_unrounded)
        logits = head.sums(left[0])
        assert logits is not None
        assert logits.dtype is torch.float32
        assert logits.shape == (5, 100)
