"""Checks of the Triton kernels on a CPU, in triton's interpreter. `test_model_cuda_kernels.py` runs them in a
process of their own, since triton chooses the interpreter when it is imported."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import triton.language as tl
from goldens import load_float32
from search_states import same, unchanged
from tiny import make_native
from torch import Tensor
from triton.runtime import interpreter

from florence.engine.device.backend import Backend
from florence.engine.device.beams import search
from florence.engine.device.beams.reference import Hypothesis, TokenRules, generate_alone
from florence.engine.device.beams.search_state import RUNNING, SearchState, StepShape, starts_of
from florence.engine.device.capture.graphs import EagerCapturer
from florence.engine.device.cuda import search as cuda_search
from florence.engine.device.cuda.kernel import Case, CudaKernel
from florence.engine.device.cuda.kernels import LOW_RANK_KERNELS, QUANTIZE, STEP_KERNELS, ExampleSizes
from florence.engine.device.runner import Runner
from florence.engine.device.steps import grouped_batch
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.attention import DecodeBatch
from florence.model.cuda.attention import CUDA
from florence.model.kernels.cuda import attention, candidates, norms, twins, windows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about infinities

DTYPES = {
    # Tolerances for results around 1 that are rounded once, and softmax weights that are rounded before.
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7},
    torch.float16: {"rtol": 2**-10, "atol": 2**-10},
}
HEADS, HEAD_DIM, ROOM = 2, 16, 150
"""More positions than two blocks of keys."""

ROOM_OF_SEARCH = 12


@pytest.fixture(scope="session", autouse=True)
def language_patched_once() -> Iterator[None]:
    """Patch triton's language once for each kernel.

    The interpreter patches it again for each function that a kernel calls, which takes longer than what most
    of them compute. The patching function is private in triton; there is no public hook for it.
    """
    patch, patched = interpreter._patch_lang, set[str]()

    def once(fn: Any) -> Any:
        modules = {value.__name__ for value in fn.__globals__.values() if isinstance(value, ModuleType)}
        names = modules & {tl.__name__, tl.core.__name__}
        if names <= patched:
            return None
        scope, is_kernel = patch(fn), not patched
        patched.update(names)
        if is_kernel:
            restore = scope.restore
            scope.restore = lambda: (restore(), patched.clear())
        return scope

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang", once)
        yield


class Crowd(NamedTuple):
    """Requests of a step, each with its own beams, cache rows and lengths; some are padding."""

    beams: Tensor
    rows: Tensor
    slots: Tensor
    positions: Tensor
    indirection: Tensor
    lengths: Tensor

    @property
    def present(self) -> Tensor:
        """True for the rows that belong to a beam."""
        width = len(self.rows) // len(self.beams)
        return (torch.arange(width) < self.beams[:, None]).flatten()


def crowd(seed: int, width: int) -> Crowd:
    """Requests with 0 to `width` beams, whose pasts are spread over the rows of their request."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    counts = [width, 0, dice.randint(1, width)]
    dice.shuffle(counts)
    beams = torch.tensor(counts, dtype=torch.int32)
    places = torch.randperm(3 * width + 2)[: 3 * width]
    position = torch.tensor([dice.choice([0, 1, 63, 64, 65, 149]) for _ in counts])
    parents = (torch.rand(3, width, ROOM) * beams.clamp(min=1)[:, None, None]).long()
    rows = places.view(3, width)[torch.arange(3)[:, None, None], parents]
    return Crowd(
        beams,
        places,
        torch.randperm(5)[:3],
        position.repeat_interleave(width),
        rows.int(),
        torch.tensor([dice.choice([1, 63, 64, 65, ROOM]) for _ in counts], dtype=torch.int32),
    )


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor of random numbers."""
    return torch.randn(shape).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """A cache with more room than is used, which has NaN wherever no request has written."""
    cache = torch.full(shape, torch.nan, dtype=dtype)
    cache[:, :, : ROOM + 1] = numbers(*cache[:, :, : ROOM + 1].shape, dtype=dtype)
    return cache


@pytest.fixture
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of programs that share the keys of a head."""
    monkeypatch.setattr(attention, "splits_for", lambda *_: request.param)
    return int(request.param)


CROWDS = pytest.mark.parametrize(
    ("splits", "width", "dtype"),
    [
        (splits, width, list(DTYPES)[(row + column) % 3])
        for row, splits in enumerate((1, 8))
        for column, width in enumerate((1, 3, 8))
    ],
    indirect=["splits"],
    ids=str,
)
"""Each width with 1 and with 8 splits, and each dtype: a kernel's code path depends on width and splits."""


@CROWDS
def test_self_attention_equals_its_twin(dtype: torch.dtype, width: int, splits: int) -> None:
    """The self-attention kernel gives its reference's result, and writes the step's keys and values at its
    position only."""
    step = crowd(width + splits, width)
    states = numbers(3 * width, 3 * HEADS * HEAD_DIM, dtype=dtype).chunk(3, dim=-1)
    caches = [poisoned(3 * width + 2, HEADS, ROOM + 9, HEAD_DIM, dtype=dtype) for _ in range(2)]
    twin = [cache.clone() for cache in caches]
    place = step.rows, step.positions, step.beams, step.indirection
    made = attention.self_attention(*states, *caches, *place)
    expected = twins.self_attention(*states, *twin, *place)
    torch.testing.assert_close(made[step.present], expected[step.present], **DTYPES[dtype])
    for cache, other in zip(caches, twin, strict=True):
        torch.testing.assert_close(cache, other, rtol=0, atol=0, equal_nan=True)


@CROWDS
def test_cross_attention_equals_its_twin(dtype: torch.dtype, width: int, splits: int) -> None:
    """The cross-attention kernel gives its reference's result, and reads no position after a request's
    length."""
    step = crowd(width + splits, width)
    queries = numbers(3 * width, HEADS * HEAD_DIM, dtype=dtype)
    caches = [numbers(5, HEADS, ROOM + 9, HEAD_DIM, dtype=dtype) for _ in range(2)]
    for slot, length in zip(step.slots.tolist(), step.lengths.tolist(), strict=True):
        for cache in caches:
            cache[slot, :, length:] = torch.nan
    arguments = queries, *caches, step.slots, step.lengths, step.beams
    made, expected = attention.cross_attention(*arguments), twins.cross_attention(*arguments)
    torch.testing.assert_close(made[step.present], expected[step.present], **DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, 64])
def test_norms_equal_their_twins(dtype: torch.dtype, width: int) -> None:
    """The norm and embedding kernels equal their references, for widths that are powers of two and others."""
    torch.manual_seed(width)
    vectors = [numbers(width, dtype=dtype) for _ in range(3)]
    product, residual = numbers(5, width, dtype=dtype), numbers(5, width, dtype=dtype)
    arguments: tuple[Any, ...] = (product, vectors[0], residual, *vectors[1:], 1e-5)
    torch.testing.assert_close(norms.add_norm(*arguments), twins.add_norm(*arguments), **DTYPES[dtype])
    tokens, positions = torch.randint(0, 20, (5,)), torch.randint(0, 9, (5,))
    tables = numbers(20, width, dtype=dtype), numbers(11, width, dtype=dtype)
    arguments = (tokens, positions, *tables, *vectors[1:], 1.5, 1e-5, 2)
    torch.testing.assert_close(norms.embed(*arguments), twins.embed(*arguments), **DTYPES[dtype])


def test_window_sums_equal_their_twin() -> None:
    """The window sums equal their reference for tokens at both ends, in the middle and outside, and for
    finished beams."""
    torch.manual_seed(0)
    tokens = torch.tensor([[30, 49, 4], [-1, 50, 35]])  # the ordered ones are 30 to 49
    parents, rows = torch.randint(6, (2, 3)), torch.randperm(9)[:6]
    slots, generated, widths = torch.tensor([3, 0]), torch.tensor([4, 9, 9, 2]), torch.tensor([0, 3, 100])
    logits = torch.randn(6, 64)[:, :60]
    logits[:, 33] = -torch.inf
    made, expected = torch.zeros(9, 8, 3), torch.zeros(9, 8, 3)
    arguments = logits, logits.logsumexp(-1), tokens, parents, rows, slots, generated, widths
    windows.window_sums(*arguments, made, 30, 20)
    twins.window_sums(*arguments, expected, 30, 20)
    torch.testing.assert_close(made, expected)
    assert (made > 0).sum() == 3 * 3


CHECKED = (*STEP_KERNELS[:-2], LOW_RANK_KERNELS[0], QUANTIZE)


@pytest.mark.parametrize("kernel", CHECKED, ids=lambda kernel: kernel.name)
def test_each_kernel_passes_the_check_of_the_start(kernel: CudaKernel[ExampleSizes]) -> None:
    """The start-up check passes each kernel, and finds one with another result."""
    torch.manual_seed(0)
    smaller = replace(kernel, small=ExampleSizes(1, 3, 1, 16, 1100, 70, 70))
    smaller.check(torch.device("cpu"), torch.float32)
    wrong = replace(smaller, example=lambda *_: disturbed(kernel.example(*_)))
    with pytest.raises(AssertionError, match=f"{kernel.name} differs"):
        wrong.check(torch.device("cpu"), torch.float32)


def disturbed(case: Case) -> Case:
    """The same case, whose kernel gives another result."""
    return Case(lambda: [values + 1 for values in case.kernel()], case.twin)


class Searches(NamedTuple):
    """Requests with random options, in random slots and rows."""

    state: SearchState
    placed: list[Slot]
    width: int

    def batch(self, requests: int) -> DecodeBatch:
        """These requests as a batch, padded to this number of requests."""
        return grouped_batch(
            [StepSequence(slot=slot, encoder_length=1) for slot in self.placed], requests, self.width
        )


def searches(seed: int) -> Searches:
    """Two requests with random options, already started."""
    dice = random.Random(seed)
    width = dice.choice([1, 3, 8])
    rules = TokenRules(0, 2, dice.choice([None, None, 0]), dice.choice([None, 2]), range(20, 190))
    state = SearchState(5, ROOM_OF_SEARCH, rules, torch.device("cpu"))
    rows = iter(dice.sample(range(40), 40))
    placed = [
        Slot(slot, tuple(next(rows) for _ in range(dice.randint(1, width))))
        for slot in dice.sample(range(5), 2)
    ]
    for slot in placed:
        least = dice.choice([0, 0, 5])
        options = GenerationOptions(
            num_beams=len(slot.rows),
            max_new_tokens=dice.randint(max(1, least), ROOM_OF_SEARCH - 1),
            min_new_tokens=least,
            no_repeat_ngram_size=dice.choice([0, 2, 3]),
            early_stopping=dice.choice([True, False, "never"]),
            length_penalty=dice.choice([0.0, 1.0, 2.0, -1.0, 0.7]),
        )
        state.start(starts_of([(slot, options)]))
    return Searches(state, placed, width)


@pytest.mark.parametrize("seed", [0, 1, 5])  # widths of 3, 1 and 8
def test_the_search_equals_its_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the search kernel equals its definition until all requests end.

    The options are random: beams, n-grams, forced and early EOS, stopping, penalties, limits. Padding and all
    other slots stay unchanged, and logits that are not numbers are reported.
    """
    monkeypatch.setattr(candidates, "CHUNK", 128)
    dice, crowd = random.Random(seed), searches(seed)
    torch.manual_seed(seed)
    made, expected = deepcopy(crowd.state), crowd.state
    shape = StepShape(crowd.width, ROOM_OF_SEARCH + 1, True, 1)
    rows, used = len(crowd.placed) * crowd.width, [slot.index for slot in crowd.placed]
    for step in range(ROOM_OF_SEARCH):
        logits = torch.randn(rows + crowd.width, 210) * 3
        if step == 0:  # in the first step all beams of a request are equal
            logits = logits[:: crowd.width].repeat_interleave(crowd.width, 0)
        logits[:, 2] += dice.choice([0.0, 0.0, 5.0])
        if dice.random() < 0.03:
            logits[dice.randrange(rows), 7] = dice.choice([torch.nan, torch.inf])
        before = deepcopy(made)
        search.advance(expected, crowd.batch(2), shape, logits[:rows, :200].clone())
        cuda_search.advance(made, crowd.batch(3), shape, logits.clone()[:, :200])
        for slot in used:
            if before.status[slot] == RUNNING:
                same(made, expected, slot)
            else:
                unchanged(made, before, slot)
        for slot in set(range(5)).difference(used):
            unchanged(made, before, slot)
        if not (made.status[used] == RUNNING).any():
            break


def test_the_engine_is_exact_with_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with one to four beams in one batch get the answers that they get alone."""
    monkeypatch.setattr(attention, "splits_for", lambda *_: 1)
    make_native(
        tmp_path, text_config={"d_model": 64, "decoder_layers": 1}, vision_config={"projection_dim": 64}
    )
    model = load_float32(tmp_path, 1100)
    backend = Backend(
        CUDA,
        cuda_search.advance,
        capturer=EagerCapturer(),
        delayed_readback=True,
        free_host_reads=False,
    )
    runner = Runner(model, 3, backend=backend, decoder_room=12, picture_tokens=5)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    requests = [
        Request(pixels, (0, *range(5, 8 + 20 * beams), 2), GenerationOptions(beams, most, 0, 2, True, 1.0))
        for beams, most in ((3, 6), (1, 4), (4, 5))
    ]
    sequences = runner.encode(requests)
    answers = {}
    while len(answers) < len(requests):
        answers |= {sequences.index(sequence): outcome for sequence, outcome in runner.step(sequences)}
    for index, request in enumerate(requests):
        alone = generate_alone(model, request, runner.rules)
        answer = answers[index]
        assert isinstance(answer, Hypothesis)
        assert answer.token_ids == alone.token_ids
        assert answer.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-3)
