"""One decoder step for many requests at once, each with its own number of beams, length and encoder states.

All linear layers run over the rows of all beams of all requests together; attention runs request by request
over exactly its own keys, so no request is padded and none sees another. Knows tensors and caches; which
tokens to read next is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from florence.model.language import POSITION_OFFSET, Attention, Cache, DecoderLayer, LanguageModel


class DecodeState:
    """What the decoder remembers of one request: its encoder's keys and values once, its beams' own ones step
    by step.

    Nothing is moved when beams are reordered: each step appends one entry for each beam, and `visible` says
    which entries are a beam's own past. On a CPU, memory that is reserved for later steps is not yet used.
    """

    def __init__(self, cross: Cache, beams: int, max_steps: int) -> None:
        layers, (_, heads, _, head_dim) = len(cross), cross[0].keys.shape  # [1, heads, length, head_dim]
        self.cross = cross
        self.beams = beams
        self.steps = 0
        # [layers, keys | values, heads, entries, head_dim], entry = step * beams + beam
        self.entries = cross[0].keys.new_empty(layers, 2, heads, max_steps * beams, head_dim)
        self.visible = torch.zeros(beams, max_steps * beams, dtype=torch.bool, device=self.entries.device)

    def reorder(self, parents: Sequence[int]) -> None:
        """Let beam i go on from beam `parents[i]`, and see the entries of the step that begins."""
        if self.beams > 1:
            self.visible = self.visible[list(parents)]
        start = self.steps * self.beams
        own = torch.arange(self.beams, device=self.visible.device)
        self.visible[own, start + own] = True
        self.steps += 1

    @property
    def length(self) -> int:
        """Entries in use, those of the running step counted."""
        return self.steps * self.beams


def decode_step(
    language: LanguageModel,
    states: Sequence[DecodeState],
    parents: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
) -> tuple[Tensor, ...]:
    """Advance every request by one token.

    `parents[r][i]`: which of request r's beams of the step before beam i continues; `tokens[r][i]`: what it
    reads. Returns float32 logits [beams, vocab] for each request.
    """
    decoder, device = language.decoder, language.shared.weight.device
    positions = [state.steps for state in states for _ in range(state.beams)]
    for state, chosen in zip(states, parents, strict=True):
        state.reorder(chosen)
    masks = [state.visible[:, : state.length] if state.beams > 1 else None for state in states]
    token_ids = torch.tensor([token for row in tokens for token in row], device=device)
    places = decoder.embed_positions.weight[torch.tensor(positions, device=device) + POSITION_OFFSET]
    rows = decoder.layernorm_embedding(language.embed(token_ids) + places)  # [rows, d_model]
    counts = [state.beams for state in states]
    for index, layer in enumerate(cast("Iterable[DecoderLayer]", decoder.layers)):
        rows = layer.self_attn_layer_norm(rows + _attend_self(layer.self_attn, rows, states, masks, index))
        crossed = _attend_cross(layer.encoder_attn, rows, states, index)
        rows = layer.encoder_attn_layer_norm(rows + crossed)
        rows = layer.feed_forward(rows)
    return torch.split(language.logits(rows), counts)


def _attend_self(
    attention: Attention,
    rows: Tensor,
    states: Sequence[DecodeState],
    masks: Sequence[Tensor | None],
    layer: int,
) -> Tensor:
    """Append this step's keys and values to each request's entries, and attend to the visible ones."""
    heads = attention.heads
    queries, keys, values = (
        rearrange(projection(rows), "rows (heads head_dim) -> heads rows head_dim", heads=heads)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed, first = [], 0
    for state, mask in zip(states, masks, strict=True):
        end, last = state.length, first + state.beams
        entries = state.entries[layer]  # [keys | values, heads, entries, head_dim]
        entries[0, :, end - state.beams : end] = keys[:, first:last]
        entries[1, :, end - state.beams : end] = values[:, first:last]
        mixed.append(_attend(queries[:, first:last], entries[0, :, :end], entries[1, :, :end], mask))
        first = last
    return _join(attention, mixed)


def _attend_cross(attention: Attention, rows: Tensor, states: Sequence[DecodeState], layer: int) -> Tensor:
    """The beams of a request are query rows over its one copy of the encoder's keys and values."""
    queries = rearrange(attention.q_proj(rows), "rows (heads dim) -> heads rows dim", heads=attention.heads)
    parts = queries.split([state.beams for state in states], dim=1)
    mixed = [
        _attend(part, state.cross[layer].keys[0], state.cross[layer].values[0], None)
        for part, state in zip(parts, states, strict=True)
    ]
    return _join(attention, mixed)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """[heads, beams, head_dim] over [heads, length, head_dim]; `mask` [beams, length] is true where it may
    look."""
    return F.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask)[0]


def _join(attention: Attention, mixed: list[Tensor]) -> Tensor:
    joined = rearrange(torch.cat(mixed, dim=1), "heads rows head_dim -> rows (heads head_dim)")
    result: Tensor = attention.out_proj(joined)
    return result
