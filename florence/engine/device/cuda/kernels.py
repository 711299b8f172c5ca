"""The table of the Triton kernels of a decode step, and the table of all. Imports triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from florence.engine.device.beams import search
from florence.engine.device.beams.reference import TokenRules
from florence.engine.device.beams.search_state import SearchState, StepShape, starts_of
from florence.engine.device.cuda import search as cuda_search
from florence.engine.device.cuda.encode_kernels import ENCODE_KERNELS, activated_case
from florence.engine.device.cuda.kernel import Case, CudaKernel
from florence.engine.device.steps import grouped_batch
from florence.engine.request import GenerationOptions
from florence.engine.sequence import StepSequence
from florence.engine.slots import Slot
from florence.model.kernels import fp8
from florence.model.kernels.cuda import attention, low_rank, norms, quantize, twins, windows

STEPS = 3
"""Steps that an example's searches have taken before."""


@dataclass(frozen=True, slots=True)
class ExampleSizes:
    """Sizes of an example: requests and beams of a step, the decoder's sizes, and positions in use."""

    requests: int
    beams: int
    heads: int
    head_dim: int
    vocab: int
    encoder_length: int
    length: int

    @property
    def rows(self) -> int:
        return self.requests * self.beams

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


LARGE = ExampleSizes(64, 3, 16, 64, 51_289, 592, 128)
"""Florence-2-large with many requests."""

SMALL = ExampleSizes(8, 3, 16, 64, 5_000, 100, 70)
"""Enough requests and heads that a head's keys are not split, as in the smallest captured step."""


def _low_rank_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    """Both kernels for queries, keys and values, with eight adapters, and rows without one."""
    slots, rank, parts = 8, 16, 3
    index = torch.randint(slots + 1, (sizes.requests,), device=device).repeat_interleave(sizes.beams)
    states = torch.randn(sizes.rows, sizes.width, dtype=dtype, device=device)
    down = torch.randn(parts * slots * rank, sizes.width, dtype=dtype, device=device) * sizes.width**-0.5
    up = torch.randn(parts * sizes.width, slots * rank, dtype=dtype, device=device) * rank**-0.5
    total = torch.randn(sizes.rows, parts * sizes.width, dtype=dtype, device=device)

    def run(shrink: Callable[..., Tensor], expand: Callable[..., None]) -> Callable[[], Sequence[Tensor]]:
        def added() -> Sequence[Tensor]:
            result = total.clone()
            expand(shrink(states, index, down, rank, parts), index, up, result, parts)
            return (result,)

        return added

    return Case(run(low_rank.shrink, low_rank.expand), run(twins.shrink, twins.expand))


def _quantize_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    """The input of a layer in the tower's third stage; results in a dtype that can be compared."""
    rows = torch.randn(36 * sizes.requests * sizes.beams, sizes.width, dtype=dtype, device=device)

    def run(work: fp8.RowQuantizer) -> Callable[[], Sequence[Tensor]]:
        def quantized() -> Sequence[Tensor]:
            values, scales = work(rows)
            return values.float(), scales

        return quantized

    return Case(run(quantize.quantize_rows), run(fp8.quantize_rows))


def _self_attention_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    states = torch.randn(sizes.rows, 3 * sizes.width, dtype=dtype, device=device)
    queries, keys, values = states.chunk(3, dim=1)
    shape = sizes.rows, sizes.heads, sizes.length + 1, sizes.head_dim
    caches = torch.randn(2, *shape, dtype=dtype, device=device)
    rows = torch.arange(sizes.rows, device=device)
    parents = torch.randint(sizes.beams, (sizes.requests, sizes.beams, sizes.length + 1), device=device)
    indirection = (parents + sizes.beams * torch.arange(sizes.requests, device=device)[:, None, None]).int()
    positions = torch.full_like(rows, sizes.length)
    beams = torch.full((sizes.requests,), sizes.beams, dtype=torch.int32, device=device)
    arguments = queries, keys, values, caches[0], caches[1], rows, positions, beams, indirection
    return Case(lambda: (attention.self_attention(*arguments),), lambda: (twins.self_attention(*arguments),))


def _cross_attention_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    queries = torch.randn(sizes.rows, sizes.width, dtype=dtype, device=device)
    shape = sizes.requests, sizes.heads, sizes.encoder_length, sizes.head_dim
    caches = torch.randn(2, *shape, dtype=dtype, device=device)
    slots = torch.arange(sizes.requests, device=device)
    lengths = torch.full_like(slots, sizes.encoder_length, dtype=torch.int32)
    beams = torch.full_like(lengths, sizes.beams)
    arguments = queries, caches[0], caches[1], slots, lengths, beams
    return Case(
        lambda: (attention.cross_attention(*arguments),), lambda: (twins.cross_attention(*arguments),)
    )


def _add_norm_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    product, residual = torch.randn(2, sizes.rows, sizes.width, dtype=dtype, device=device)
    product_bias, weight, bias = torch.randn(3, sizes.width, dtype=dtype, device=device)
    return Case(
        lambda: (norms.add_norm(product, product_bias, residual, weight, bias, 1e-5),),
        lambda: (twins.add_norm(product, product_bias, residual, weight, bias, 1e-5),),
    )


def _embed_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    tokens = torch.randint(sizes.vocab, (sizes.rows,), device=device)
    positions = torch.randint(sizes.length, (sizes.rows,), device=device)
    table = torch.randn(sizes.vocab, sizes.width, dtype=dtype, device=device)
    places = torch.randn(sizes.length + 2, sizes.width, dtype=dtype, device=device)
    weight, bias = torch.randn(2, sizes.width, dtype=dtype, device=device)
    return Case(
        lambda: (norms.embed(tokens, positions, table, places, weight, bias, 1.0, 1e-5, 2),),
        lambda: (twins.embed(tokens, positions, table, places, weight, bias, 1.0, 1e-5, 2),),
    )


def _search_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    """A step of searches that have taken `STEPS` before; in float32 whatever the `dtype`."""
    ordered = range(sizes.vocab - 1_000, sizes.vocab)
    rules = TokenRules(start_id=2, eos_id=2, forced_bos_id=None, forced_eos_id=2, ordered=ordered)
    state = SearchState(sizes.requests, sizes.length, rules, device)
    options = GenerationOptions(sizes.beams, sizes.length - 1, 0, 3, True, 1.0)
    places = [range(slot * sizes.beams, (slot + 1) * sizes.beams) for slot in range(sizes.requests)]
    slots = [Slot(index, tuple(rows)) for index, rows in enumerate(places)]
    state.start(starts_of([(slot, options) for slot in slots]).to(device))
    sequences = [StepSequence(slot=slot, encoder_length=sizes.encoder_length) for slot in slots]
    batch = grouped_batch(sequences, sizes.requests, sizes.beams).map(lambda values: values.to(device))
    shape = StepShape(sizes.beams, sizes.length + 1, True, sizes.encoder_length)
    padded = -(-sizes.vocab // 64) * 64
    for _ in range(STEPS):
        search.advance(state, batch, shape, torch.randn(sizes.rows, sizes.vocab, device=device))
    logits = torch.randn(sizes.rows, padded, device=device)

    def run(advance: search.SearchStep) -> Callable[[], Sequence[Tensor]]:
        def advanced() -> Sequence[Tensor]:
            mine = deepcopy(state)
            advance(mine, batch, shape, logits.clone()[:, : sizes.vocab])
            reached = STEPS + 2
            histories = mine.sequences, mine.suffix_matches, mine.beam_indirection, mine.logprobs
            return (
                *(mine.status, mine.last_token, mine.generated, mine.totals[:, : sizes.beams]),
                *(history[:, : sizes.beams, :reached] for history in histories),
                mine.finished_count,
            )

        return advanced

    return Case(run(cuda_search.advance), run(search.advance))


def _windows_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    """The window sums of locations, the last tokens; in float32 whatever the `dtype`."""
    count, widths = 1_000, torch.tensor([1, 4, 16, 64], device=device)
    first = sizes.vocab - count
    logits = torch.randn(sizes.rows, sizes.vocab, device=device)
    tokens = torch.randint(first, sizes.vocab, (sizes.requests, sizes.beams), device=device)
    rows, slots = torch.arange(sizes.rows, device=device), torch.arange(sizes.requests, device=device)
    parents = rows.view(sizes.requests, sizes.beams)
    generated = torch.full_like(slots, sizes.length - 1)
    arguments = logits, logits.logsumexp(-1), tokens, parents, rows, slots, generated, widths

    def run(work: Callable[..., None]) -> Callable[[], Sequence[Tensor]]:
        def kept() -> Sequence[Tensor]:
            sums = torch.zeros(sizes.rows, sizes.length, len(widths), device=device)
            work(*arguments, sums, first, count)
            return (sums,)

        return kept

    return Case(run(windows.window_sums), run(twins.window_sums))


def _gelu_linear_case(device: torch.device, dtype: torch.dtype, sizes: ExampleSizes) -> Case:
    """A step's first feed-forward layer."""
    states = torch.randn(sizes.rows, sizes.width, dtype=dtype, device=device)
    weight = torch.randn(4 * sizes.width, sizes.width, dtype=dtype, device=device) * sizes.width**-0.5
    return activated_case(states, weight, torch.randn(len(weight), dtype=dtype, device=device))


_step_kernel = partial(CudaKernel[ExampleSizes], large=LARGE, small=SMALL)

STEP_KERNELS = (
    _step_kernel("florence::self_attention", _self_attention_case),
    _step_kernel("florence::cross_attention", _cross_attention_case),
    _step_kernel("florence::add_norm", _add_norm_case),
    _step_kernel("florence::embed", _embed_case),
    _step_kernel("florence::gelu_linear", _gelu_linear_case, note="few rows"),
    _step_kernel("florence::window_sums", _windows_case),
    _step_kernel("florence::scan", _search_case),
    _step_kernel("florence::merge", _search_case),
    _step_kernel("florence::choose", _search_case),
)

QUANTIZE = _step_kernel("florence::quantize_rows", _quantize_case)
"""Only for cards that multiply in fp8."""

LOW_RANK_KERNELS = (
    _step_kernel("florence::shrink", _low_rank_case),
    _step_kernel("florence::expand", _low_rank_case),
)
"""For adapters beside the weights."""

KERNELS: tuple[CudaKernel[Any], ...] = (*STEP_KERNELS, *LOW_RANK_KERNELS, QUANTIZE, *ENCODE_KERNELS)
