"""The decoder's self-attention and cross-attention in one step, behind one interface.

To add a kernel for another device, write a `StepAttention`, which gets all inputs of a step and is called in
each layer, once for each attention, and an `AttentionBackend` of it. Two are here: `DenseAttention` (PyTorch,
any device, fixed shapes, masks) and `KernelAttention` (the project's kernel for CPUs, no padding). Knows
tensors and caches; the caller decides which beams take part and where their past is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from florence.model.caches import Caches
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.linear import Linear
from florence.model.kernels.plain import Product, additive_mask, product_float32, product_unrounded
from florence.model.language import POSITION_OFFSET, LanguageModel


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The requests and beams of a decode step. All tensors are int64 unless another dtype is given.

    `slots` [requests] and `rows` [rows] index the caches. `request_of`, `beam_of` [rows]: the request that a
    row belongs to, as an index into `slots`, and which of its beams it is. `rows_of` [requests, beams]: the
    index in `rows` of each beam; 0 where a request has fewer beams than the widest one and `is_beam`
    [requests, beams] (bool) is false. `beams` int32 [requests]: number of beams. `encoder_lengths` int32
    [requests], in positions. `adapters` [rows]: the slot of each row's adapter (`lowrank.py`), 0 for none.
    """

    slots: Tensor
    rows: Tensor
    request_of: Tensor
    beam_of: Tensor
    rows_of: Tensor
    is_beam: Tensor
    beams: Tensor
    encoder_lengths: Tensor
    adapters: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def map(self, move: Callable[[Tensor], Tensor]) -> DecodeBatch:
        """The batch with `move` applied to each tensor, for instance to copy it to a device."""
        return DecodeBatch(*map(move, self.tensors()))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What both attentions of a step read besides queries, keys and values.

    `beam_indirection` int32 [requests, beams, length]: the cache row that holds each position of a beam's
    past. `positions` int64 [rows]: each row's position in this step. `encoder_length`: at least the longest
    of the batch.
    """

    caches: Caches
    batch: DecodeBatch
    beam_indirection: Tensor
    positions: Tensor
    encoder_length: int


class StepAttention(ABC):
    """Both attentions of any layer in one step, and the other operations between its matrix products, here by
    PyTorch's operations."""

    def __init__(self, step: StepInputs) -> None:
        self._step, self._caches, self._batch = step, step.caches, step.batch

    @abstractmethod
    def cross_attention(self, queries: Tensor, layer: int) -> Tensor:
        """Attention of `queries` [rows, d_model] to the encoder states of each row's request; same shape."""

    @abstractmethod
    def self_attention(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        """Write the step's `keys` and `values` [rows, d_model] into the caches. Attention of `queries` [rows,
        d_model] to each row's own past, this step's position included; same shape."""

    def embed(self, language: LanguageModel, tokens: Tensor) -> Tensor:
        """The decoder's first states [rows, d_model] of `tokens` int64 [rows] at their positions."""
        decoder = language.decoder
        places = decoder.embed_positions.weight[self._step.positions + POSITION_OFFSET]
        states: Tensor = decoder.layernorm_embedding(language.embed(tokens) + places)
        return states

    def apply(self, linear: Linear, states: Tensor) -> Tensor:
        """A linear layer with its activation: [rows, inner] -> [rows, outputs]."""
        result: Tensor = linear(states)
        return result

    def add_norm(self, linear: Linear, norm: nn.LayerNorm, inputs: Tensor, residual: Tensor) -> Tensor:
        """`norm(residual + linear(inputs))`, [rows, d_model]."""
        states: Tensor = norm(linear.plus(inputs, residual))
        return states

    def _write(self, keys: Tensor, values: Tensor, layer: int) -> None:
        """Write a step's keys and values [rows, d_model] into the caches."""
        caches, rows, positions = self._caches, self._batch.rows, self._step.positions
        heads = caches.self_keys.shape[2]
        caches.self_keys[layer][rows, :, positions] = split_heads(keys, heads)
        caches.self_values[layer][rows, :, positions] = split_heads(values, heads)


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """A way to compute a step's attentions.

    `begin`: makes those of one step, prepared for all layers. Where steps are captured as graphs, this call
    is captured too: it must not read a value on the host. `masked`: whether it reads the first slots and rows
    of the caches as a whole and masks all positions that are not a request's own. Then its batches list those
    slots and rows in order (`steps.dense_batch`), and masked values must be finite. Otherwise batches hold
    only the rows in use, a request's rows adjacent (`steps.ragged_batch`), and only what a request has
    written is read. `grouped`: whether each request has as many rows as the widest (`steps.grouped_batch`),
    so that lengths and beams change no shape.
    """

    begin: Callable[[StepInputs], StepAttention]
    masked: bool = False
    grouped: bool = False


class DenseAttention(StepAttention):
    """Both attentions with PyTorch's operations, `product` among them; positions that are not a beam's past
    are masked.

    Shapes depend only on those of the batch and `beam_indirection`, and on `encoder_length`, never on values
    of tensors, so that a CUDA graph can capture a step.
    """

    def __init__(self, step: StepInputs, product: Product = product_float32) -> None:
        super().__init__(step)
        self._product = product
        batch, indirection, device = step.batch, step.beam_indirection, step.positions.device
        self._encoder_length, self._length = step.encoder_length, indirection.shape[-1]
        self._rows, self._requests = len(batch.rows), len(batch.slots)
        seen = torch.arange(self._encoder_length, device=device) < batch.encoder_lengths[:, None]
        # Both masks are prepared once for all layers; they are added to scores.
        cross_mask = additive_mask(seen, step.caches.cross_keys.dtype)
        self._cross_mask = cross_mask[:, None, None]  # [requests, 1, 1, encoder_length]
        # Which positions of a row each beam of its request owns: [rows, beams, length].
        owned = indirection[batch.request_of] == batch.rows[:, None, None]
        past = torch.arange(self._length, device=device) <= step.positions[:, None]
        self._self_mask = additive_mask(owned & past[:, None], torch.float32)
        self._is_beam = batch.is_beam[:, :, None, None]  # [requests, beams, 1, 1]
        # Tensors, since `torch.where` would fill a new one for each Python number.
        self._zero = torch.zeros((), device=device)
        self._minus_infinity = torch.full((), -torch.inf, device=device)

    def cross_attention(self, queries: Tensor, layer: int) -> Tensor:
        """A request's beams are query rows that share one copy of the encoder's keys and values."""
        caches, batch = self._caches, self._batch
        keys = caches.cross_keys[layer, : self._requests, :, : self._encoder_length]
        values = caches.cross_values[layer, : self._requests, :, : self._encoder_length]
        grouped = split_heads(queries, keys.shape[1])[batch.rows_of]  # [requests, beams, heads, head_dim]
        queries = grouped.transpose(1, 2)  # [requests, heads, beams, head_dim], as the result
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._cross_mask)
        return mixed[batch.request_of, :, batch.beam_of].flatten(1)

    def self_attention(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        """Split-KV attention: a beam's past is spread over cache rows, each row computes a partial result for
        every beam of its request, and the partial results are combined by log-sum-exp, as in flash-decoding
        (Dao et al. 2023, https://pytorch.org/blog/flash-decoding/)."""
        self._write(keys, values, layer)
        caches, batch = self._caches, self._batch
        keys = caches.self_keys[layer, : self._rows, :, : self._length]
        values = caches.self_values[layer, : self._rows, :, : self._length]
        grouped = split_heads(queries, keys.shape[1])[batch.rows_of]
        spread = grouped[batch.request_of].transpose(1, 2)  # [rows, heads, beams, head_dim]
        scores = self._product(spread.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
        scores = scores.view(*spread.shape[:3], -1)  # [rows, heads, beams, length]
        scores = torch.add(self._self_mask[:, None], scores, alpha=keys.shape[-1] ** -0.5)
        highest = self._by_request(scores.amax(-1).transpose(1, 2), self._minus_infinity).amax(1)
        # [requests, beams, heads]; finite, since every beam sees at least the position it has just written
        shifted = scores.sub_(highest[batch.request_of].transpose(1, 2)[..., None])
        weights = shifted.exp_()
        sums = self._by_request(weights.sum(-1).transpose(1, 2), self._zero).sum(1)
        partial = self._product(weights.to(values.dtype).flatten(0, 1), values.flatten(0, 1))
        partial = partial.view(spread.shape).transpose(1, 2).flatten(2)  # [rows, beams, d_model]
        mixed = self._by_request(partial, self._zero).sum(1)  # [requests, beams, d_model]
        mixed = mixed.view(*sums.shape, -1) / sums[..., None]  # [requests, beams, heads, head_dim]
        return mixed[batch.request_of, batch.beam_of].flatten(1).to(queries.dtype)

    def _by_request(self, partial: Tensor, absent: Tensor) -> Tensor:
        """[rows, beams, any] -> [requests, rows of the request, beams, any]; `absent` where a request has
        fewer rows."""
        result: Tensor = torch.where(self._is_beam, partial[self._batch.rows_of], absent)
        return result


DENSE: Final = AttentionBackend(DenseAttention, masked=True)
DENSE_ON_GPU: Final = AttentionBackend(partial(DenseAttention, product=product_unrounded), masked=True)


class KernelAttention(StepAttention):
    """Both attentions by the CPU kernel, which reads each beam's keys in place, and only those."""

    def __init__(self, kernel: CpuAttention, step: StepInputs) -> None:
        super().__init__(step)
        batch = step.batch
        self._kernel = kernel
        self._slots, self._encoder_lengths = batch.slots.int(), batch.encoder_lengths
        self._starts = F.pad(batch.beams.cumsum(0, dtype=torch.int32), (1, 0))
        self._sources = step.beam_indirection[batch.request_of, batch.beam_of]  # [rows, length]
        self._lengths = (step.positions + 1).int()

    def cross_attention(self, queries: Tensor, layer: int) -> Tensor:
        keys, values = self._caches.cross_keys[layer], self._caches.cross_values[layer]
        return self._kernel.cross_attention(
            queries, keys, values, self._slots, self._starts, self._encoder_lengths
        )

    def self_attention(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        self._write(keys, values, layer)
        keys, values = self._caches.self_keys[layer], self._caches.self_values[layer]
        return self._kernel.self_attention(queries, keys, values, self._sources, self._lengths)


def by_kernel(kernel: CpuAttention) -> AttentionBackend:
    """The backend of `KernelAttention`."""
    return AttentionBackend(partial(KernelAttention, kernel))


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[rows, heads * head_dim] -> [rows, heads, head_dim]."""
    return rearrange(states, "rows (heads head_dim) -> rows heads head_dim", heads=heads)
