"""One decoder step for many requests at once, each with its own number of beams, length and encoder states.

All linear layers run over the rows of all beams of all requests together. Attention reads each request's own
keys and no others; how it is computed is the choice between two: `DenseAttention` here (any device, fixed
shapes, masks) and `cpu_attention` (a CPU, no padding). Knows tensors and caches; which tokens are read next,
and which past a beam has, is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from florence.model.caches import Caches
from florence.model.devices import pinned
from florence.model.language import POSITION_OFFSET, DecoderLayer, LanguageModel


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Who takes part in a step: some slots of the caches, and the rows of their beams.

    `slots` [requests] and `rows` [beams of all requests] index the caches. `request_of`, `beam_of` [rows]:
    whose beam a row is, and which of them. `rows_of` [requests, beams]: the place in `rows` of each beam; 0
    where a request has fewer beams than the widest, which `is_beam` [requests, beams] says. `beams`
    [requests]: how many. `encoder_lengths` [requests]. All int64 but the mask.
    """

    slots: Tensor
    rows: Tensor
    request_of: Tensor
    beam_of: Tensor
    rows_of: Tensor
    is_beam: Tensor
    beams: Tensor
    encoder_lengths: Tensor

    def to(self, device: torch.device) -> DecodeBatch:
        """These tensors on a device, which the host does not wait for."""
        values = [getattr(self, field.name) for field in fields(self)]
        return DecodeBatch(*(pinned(value, device).to(device, non_blocking=True) for value in values))

    def copy_(self, others: DecodeBatch) -> None:
        """Let these tensors hold the values of `others`, which have the same shapes and may be the host's."""
        for field in fields(self):
            mine: Tensor = getattr(self, field.name)
            mine.copy_(pinned(getattr(others, field.name), mine.device), non_blocking=True)


class StepAttention(Protocol):
    """The two attentions of one layer in one step. `queries` and result: [rows, d_model]."""

    def cross(self, queries: Tensor, layer: int) -> Tensor: ...

    def own(self, queries: Tensor, layer: int) -> Tensor: ...


def decode_step(
    language: LanguageModel,
    caches: Caches,
    rows: Tensor,
    tokens: Tensor,
    positions: Tensor,
    attention: StepAttention,
) -> Tensor:
    """Advance every row by one token and write its keys and values at its position.

    `rows`: where in the caches; `tokens`: what each row reads; `positions`: how many it has read before; all
    int64 [rows]. Returns float32 logits [rows, vocab].
    """
    decoder = language.decoder
    places = decoder.embed_positions.weight[positions + POSITION_OFFSET]
    states = decoder.layernorm_embedding(language.embed(tokens) + places)  # [rows, d_model]
    for index, layer in enumerate(cast("Iterable[DecoderLayer]", decoder.layers)):
        own, cross = layer.self_attn, layer.encoder_attn
        queries, keys, values = own.qkv(states)
        caches.own_keys[index][rows, :, positions] = _heads(keys, own.heads)
        caches.own_values[index][rows, :, positions] = _heads(values, own.heads)
        states = layer.self_attn_layer_norm(own.out_proj.plus(attention.own(queries, index), states))
        crossed = attention.cross(cross.q_proj(states), index)
        states = layer.encoder_attn_layer_norm(cross.out_proj.plus(crossed, states))
        states = layer.feed_forward(states)
    return language.logits(states)


def try_products(language: LanguageModel, rows: int) -> None:
    """Compute each kind of product of a step of so many rows once: oneDNN makes what it needs for a shape at
    its first use, and keeps it."""
    layer = cast("DecoderLayer", language.decoder.layers[0])
    states = language.shared.weight.new_zeros(rows, language.shared.embedding_dim)
    own = layer.self_attn
    own.out_proj.plus(own.q_proj(states), states)
    language.logits(layer.feed_forward(states))


class DenseAttention:
    """Both attentions as matrix products over the caches' first slots and rows, what is not a beam's past
    masked out.

    Shapes depend on those of `members` and `ancestry` and on `encoder_length` only, never on values, so that
    a CUDA graph can hold it. `members.slots` must be 0, 1, 2, ..., and so must `members.rows`, but for those
    that no request has. `ancestry` [requests, beams, length]: the row that holds each position of a beam's
    past; `positions` [rows] as in `decode_step`.
    """

    def __init__(
        self,
        caches: Caches,
        members: DecodeBatch,
        ancestry: Tensor,
        positions: Tensor,
        encoder_length: int,
    ) -> None:
        self._caches, self._members = caches, members
        length = ancestry.shape[-1]
        self._encoder_length, self._length = encoder_length, length
        self._rows, self._requests = len(members.rows), len(members.slots)
        device = members.slots.device
        seen = torch.arange(encoder_length, device=device) < members.encoder_lengths[:, None]
        self._cross_mask = seen[:, None, None]  # [requests, 1, 1, encoder_length]
        # The queries of a request's beams, asked of each of its rows: [rows, beams, length].
        theirs = ancestry[members.request_of] == members.rows[:, None, None]
        past = torch.arange(length, device=device) <= positions[:, None]
        self._own_mask = (theirs & past[:, None])[:, None]  # [rows, 1, beams, length]
        self._absent = ~members.is_beam[:, :, None, None]  # [requests, beams, 1, 1]

    def cross(self, queries: Tensor, layer: int) -> Tensor:
        """The beams of a request are query rows over its one copy of the encoder's keys and values."""
        caches, members = self._caches, self._members
        keys = caches.cross_keys[layer, : self._requests, :, : self._encoder_length]
        values = caches.cross_values[layer, : self._requests, :, : self._encoder_length]
        grouped = _heads(queries, keys.shape[1])[members.rows_of]  # [requests, beams, heads, head_dim]
        mixed = F.scaled_dot_product_attention(
            grouped.transpose(1, 2), keys, values, attn_mask=self._cross_mask
        )  # [requests, heads, beams, head_dim]
        return mixed[members.request_of, :, members.beam_of].flatten(1)

    def own(self, queries: Tensor, layer: int) -> Tensor:
        """Each row answers the queries of all beams of its request with the positions that are theirs; the
        parts are joined by their sums of exponentials."""
        caches, members = self._caches, self._members
        keys = caches.own_keys[layer, : self._rows, :, : self._length]
        values = caches.own_values[layer, : self._rows, :, : self._length]
        grouped = _heads(queries, keys.shape[1])[members.rows_of]
        asked = grouped[members.request_of].transpose(1, 2)  # [rows, heads, beams, head_dim]
        scores = (asked @ keys.transpose(2, 3)).float() * keys.shape[-1] ** -0.5
        scores = scores.masked_fill(~self._own_mask, -torch.inf)  # [rows, heads, beams, length]
        highest = self._over_rows(scores.amax(-1).transpose(1, 2), -torch.inf).amax(1)
        # [requests, beams, heads]; every beam sees at least the position it has just written
        shifted = scores - highest[members.request_of].transpose(1, 2)[..., None]
        weights = shifted.exp()
        sums = self._over_rows(weights.sum(-1).transpose(1, 2), 0.0).sum(1)  # [requests, beams, heads]
        parts = (weights.to(values.dtype) @ values).float().transpose(1, 2)  # [rows, beams, heads, head_dim]
        mixed = self._over_rows(parts.flatten(2), 0.0).sum(1)  # [requests, beams, d_model]
        mixed = mixed.view(*sums.shape, -1) / sums[..., None]  # [requests, beams, heads, head_dim]
        return mixed[members.request_of, members.beam_of].flatten(1).to(queries.dtype)

    def _over_rows(self, parts: Tensor, absent: float) -> Tensor:
        """Chunks of the rows [rows, beams, any] by request: [requests, rows of it, beams, any]."""
        return parts[self._members.rows_of].masked_fill(self._absent, absent)


class Kernel(Protocol):
    """What `cpu_attention.CpuAttention` offers; it says the shapes."""

    def cross(
        self, queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor, lengths: Tensor
    ) -> Tensor: ...

    def own(
        self, queries: Tensor, keys: Tensor, values: Tensor, sources: Tensor, lengths: Tensor
    ) -> Tensor: ...


class KernelAttention:
    """Both attentions by a kernel that reads each beam's keys where they lie, and no others.

    The rows of a request must follow each other in `members.rows`. `ancestry` [requests, beams, length] and
    `positions` [rows] as for `DenseAttention`.
    """

    def __init__(
        self, kernel: Kernel, caches: Caches, members: DecodeBatch, ancestry: Tensor, positions: Tensor
    ) -> None:
        self._kernel, self._caches = kernel, caches
        self._slots = members.slots.int()
        self._starts = F.pad(members.beams.cumsum(0), (1, 0)).int()
        self._encoder_lengths = members.encoder_lengths.int()
        self._sources = ancestry[members.request_of, members.beam_of].int()  # [rows, length]
        self._lengths = (positions + 1).int()

    def cross(self, queries: Tensor, layer: int) -> Tensor:
        keys, values = self._caches.cross_keys[layer], self._caches.cross_values[layer]
        return self._kernel.cross(queries, keys, values, self._slots, self._starts, self._encoder_lengths)

    def own(self, queries: Tensor, layer: int) -> Tensor:
        keys, values = self._caches.own_keys[layer], self._caches.own_values[layer]
        return self._kernel.own(queries, keys, values, self._sources, self._lengths)


def _heads(states: Tensor, heads: int) -> Tensor:
    return rearrange(states, "rows (heads head_dim) -> rows heads head_dim", heads=heads)
