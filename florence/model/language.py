"""BART's encoder and decoder (arXiv 1910.13461) for inference; caches are arguments, and no state is kept
between calls.

Knows token ids, states, masks and caches; knows nothing about beams, slots or text. Layers are post-norm.
Modules have the checkpoints' names, so that loading only changes prefixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from florence.model.chunks import Chunks, run_to_end
from florence.model.config import StackConfig, TextConfig
from florence.model.encoding import PLAIN, EncodeBackend
from florence.model.kernels.linear import Beside, Linear, PackedWeight
from florence.model.kernels.plain import Product, additive_mask, product_unrounded
from florence.model.keys_values import Cache, KeysValues

POSITION_OFFSET = 2
"""BART's position table starts with two unused rows."""

RESCORED_LOGITS = 64
"""How many of a row's highest logits are computed again in float32: more than there are locations near a
point."""


HEAD_MULTIPLE = 64
"""On a GPU the head's rows are padded to a multiple of this: 51,289 becomes 51,328, and each row of logits
starts at a multiple of 256 bytes."""


class Attention(nn.Module):
    """Multi-head attention with biases on all four projections."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.out_proj = Linear(d_model, d_model)
        self._fused: tuple[Tensor, Tensor] | None = None  # weights and biases of q, k and v
        self._packed: PackedWeight | None = None  # q, k and v as one weight
        self.beside: Beside | None = None  # adapters of q, k and v as one layer

    def fuse(self) -> None:
        """Compute queries, keys and values by one product, which is faster on a GPU; the three layers'
        weights become views. Not covered: moving the module to another device afterwards."""
        layers, width = (self.q_proj, self.k_proj, self.v_proj), self.q_proj.in_features
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._fused = weight, torch.cat([layer.bias.detach() for layer in layers])
        for index, layer in enumerate(layers):
            view = weight[index * width : (index + 1) * width]
            layer.weight = nn.Parameter(view, requires_grad=False)

    @property
    def is_fused(self) -> bool:
        """Whether `project` computes by one product."""
        return self._fused is not None or self._packed is not None

    def pack_fused(self, pack: Callable[[Tensor, Tensor], PackedWeight]) -> None:
        """Replace the fused weight and bias, if there are any, by `pack(weight, bias)`, and drop the plain
        ones. Only for self-attention."""
        if self._fused is not None:
            self._packed = pack(*self._fused)
            self._fused = None
            for layer in (self.q_proj, self.k_proj, self.v_proj):
                layer.register_parameter("weight", None)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., d_model] -> queries, keys and values, each of the same shape."""
        if self._packed is not None:
            product = self._packed.product(states)
        elif self._fused is not None:
            product = F.linear(states, *self._fused)
        else:
            return self.q_proj(states), self.k_proj(states), self.v_proj(states)
        queries, keys, values = product.chunk(3, dim=-1)
        if self.beside is not None:
            self.beside.add_to(product, states)
        else:  # in place, so that all three keep the same stride between rows
            for layer, part in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values)):
                layer.add_adapters(part, states)
        return queries, keys, values

    def keys_values(self, states: Tensor) -> KeysValues:
        """[rows, length, d_model] -> keys and values [rows, heads, length, head_dim]."""
        if (both := self.fused_keys_values(states)) is None:
            return KeysValues(self._split(self.k_proj(states)), self._split(self.v_proj(states)))
        keys, values = both.chunk(2, dim=-1)
        return KeysValues(self._split(keys), self._split(values))

    def fused_keys_values(self, states: Tensor) -> Tensor | None:
        """[rows, length, d_model] -> keys, then values, [rows, length, 2 * d_model]; None where the attention
        is not fused."""
        if self._fused is None:
            return None
        (weight, bias), width = self._fused, self.q_proj.in_features
        both = F.linear(states, weight[width:], bias[width:])
        for layer, half in zip((self.k_proj, self.v_proj), both.chunk(2, dim=-1), strict=True):
            layer.add_adapters(half, states)
        return both

    def to_itself(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """`states` [rows, length, d_model] plus their self-attention; `mask` as in `forward`."""
        return self.out_proj.plus(self.mixed(states, mask), states)

    def mixed(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """`to_itself` without its output projection and without the sum with `states`."""
        queries, keys, values = map(self._split, self.project(states))
        return self._mix(queries, KeysValues(keys, values), mask)

    def forward(self, states: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
        """`states` [rows, queries, d_model] plus their attention to `memory` [rows, heads, length, head_dim].

        `mask` broadcasts to [rows, heads, queries, length]: a bool one is true where attention is allowed,
        any other is added to the scores; None masks nothing.
        """
        mixed = self._mix(self._split(self.q_proj(states)), memory, mask)
        return self.out_proj.plus(mixed, states)

    def _mix(self, queries: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        mixed = F.scaled_dot_product_attention(queries, memory.keys, memory.values, attn_mask=mask)
        return rearrange(mixed, "rows heads queries head_dim -> rows queries (heads head_dim)")

    def _split(self, states: Tensor) -> Tensor:
        split = "rows length (heads head_dim) -> rows heads length head_dim"
        return rearrange(states, split, heads=self.heads)


class Layer(nn.Module):
    """Common parts of encoder and decoder layers: self-attention and two linear layers, each with a norm."""

    def __init__(self, d_model: int, stack: StackConfig, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(d_model, stack.ffn_dim, activation=activation)
        self.fc2 = Linear(stack.ffn_dim, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = Attention(d_model, stack.heads)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)

    def feed_forward(self, states: Tensor) -> Tensor:
        """[..., d_model] -> the same shape."""
        result: Tensor = self.final_layer_norm(self.fc2.plus(self.fc1(states), states))
        return result


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """[rows, length, d_model] -> the same shape; `mask` as in `Attention.forward`."""
        return self.feed_forward(self.self_attn_layer_norm(self.self_attn.to_itself(states, mask)))


class DecoderLayer(Layer):
    """Causal self-attention, cross-attention and feed-forward."""

    def __init__(self, d_model: int, stack: StackConfig, activation: str) -> None:
        super().__init__(d_model, stack, activation)
        self.encoder_attn = Attention(d_model, stack.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)

    def forward(
        self, states: Tensor, past: KeysValues | None, cross_kv: KeysValues, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """[rows, length, d_model] after `past` -> the same shape, and `past` with the new positions."""
        present = self.self_attn.keys_values(states)
        memory = past.append(present) if past else present
        states = self.self_attn_layer_norm(self.self_attn(states, memory, mask))
        states = self.encoder_attn_layer_norm(self.encoder_attn(states, cross_kv))
        return self.feed_forward(states), memory


class Stack(nn.Module):
    """Common parts of encoder and decoder: position embeddings, their norm, and layers."""

    def __init__(self, config: TextConfig, stack: StackConfig, layer: type[Layer]) -> None:
        super().__init__()
        width = config.d_model
        self.embed_positions = nn.Embedding(config.max_positions + POSITION_OFFSET, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(layer(width, stack, config.activation) for _ in range(stack.layers))

    def add_positions(self, embeddings: Tensor, first: int) -> Tensor:
        """Add the embeddings of positions `first`, `first + 1`, ... to `embeddings` [rows, length, d_model],
        and normalise."""
        start = first + POSITION_OFFSET
        positions = self.embed_positions.weight[start : start + embeddings.shape[1]]
        result: Tensor = self.layernorm_embedding(embeddings + positions)
        return result


class Encoder(Stack):
    """BART's encoder over picture and prompt tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, config.encoder, EncoderLayer)

    def chunks(
        self, embeddings: Tensor, mask: Tensor | None = None, backend: EncodeBackend = PLAIN
    ) -> Chunks[Tensor]:
        """[rows, length, d_model] -> the same shape, yielding between layers; `mask` [rows, length] is false
        on padding."""
        states = self.add_positions(embeddings, 0)
        # Prepared once for all layers: [rows, 1, 1, length].
        added = None if mask is None else additive_mask(mask, states.dtype)[:, None, None]
        for layer in cast("Iterable[EncoderLayer]", self.layers):
            states = backend.layer(layer, states, added)
            yield
        return states


class Decoder(Stack):
    """BART's decoder over generated tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, config.decoder, DecoderLayer)

    def cross_kv(self, encoded: Tensor) -> Cache:
        """Cross-attention keys and values of every layer for encoder states [rows, length, d_model]."""
        return tuple(self.cross_kv_by_layer(encoded))

    def cross_kv_by_layer(self, encoded: Tensor) -> Iterator[KeysValues]:
        """`cross_kv` layer by layer, each computed on demand."""
        for layer in cast("Iterable[DecoderLayer]", self.layers):
            yield layer.encoder_attn.keys_values(encoded)

    def forward(self, embeddings: Tensor, past: Cache | None, cross_kv: Cache) -> tuple[Tensor, Cache]:
        """Run `embeddings` [rows, length, d_model] after `past`; `cross_kv` has no padding.

        Returns the last states [rows, length, d_model], and `past` with the new positions.
        """
        length = embeddings.shape[1]
        before = past[0].keys.shape[2] if past else 0
        causal = torch.ones(length, before + length, dtype=torch.bool, device=embeddings.device).tril(before)
        mask = causal if length > 1 else None  # a single query attends to all positions before it
        states, present = self.add_positions(embeddings, before), []
        for index, layer in enumerate(self.layers):
            states, memory = layer(states, past[index] if past else None, cross_kv[index], mask)
            present.append(memory)
        return states, tuple(present)


class LanguageModel(nn.Module):
    """Shared embedding, encoder, decoder and head."""

    final_logits_bias: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        # Zero in BART, but the original adds it, so a fine-tune may have other values.
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))
        self.has_logits_bias = True
        self.tied_head = False  # whether the head's weight is the embedding; set when weights are loaded

    def lay_out_for_gpu(self, product: Product = product_unrounded) -> None:
        """Fuse the products of each attention, and pad the head's rows so that a GPU's kernels can read and
        write whole vectors. `product`: the head's, `product_float32` for a rehearsal on a CPU."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fuse()
        self.lm_head.pad_outputs(HEAD_MULTIPLE, product)
        if self.tied_head:
            self.shared.weight = self.lm_head.weight

    def embed(self, token_ids: Tensor) -> Tensor:
        """[rows, length] -> [rows, length, d_model]."""
        embeddings: Tensor = self.shared(token_ids)
        return embeddings * self.scale

    def encode(self, picture_tokens: Tensor, prompt_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode picture tokens [rows, tokens, d_model] followed by prompt ids [rows, length].

        `mask` [rows, tokens + length] is false on padding, or None where there is none.
        """
        return run_to_end(self.encode_in_chunks(picture_tokens, prompt_ids, mask))

    def encode_in_chunks(
        self,
        picture_tokens: Tensor,
        prompt_ids: Tensor,
        mask: Tensor | None = None,
        backend: EncodeBackend = PLAIN,
    ) -> Chunks[Tensor]:
        """`encode` in chunks: yields between layers."""
        # `scale_embedding` applies to the prompt's embeddings only, as in the original.
        embeddings = torch.cat([picture_tokens, self.embed(prompt_ids)], dim=1)
        return self.encoder.chunks(embeddings, mask, backend)

    def decode(self, token_ids: Tensor, past: Cache | None, cross_kv: Cache) -> tuple[Tensor, Cache]:
        """Decoder states [rows, length, d_model] of `token_ids` [rows, length] after `past`, and `past` with
        the new positions."""
        result: tuple[Tensor, Cache] = self.decoder(self.embed(token_ids), past, cross_kv)
        return result

    def logits(self, states: Tensor) -> Tensor:
        """[..., d_model] -> float32 [..., vocab]. At least the highest logits of a row are computed in
        float32, unless the head has a weight of its own (see `_rescored`)."""
        scores = self.lm_head.sums(states)
        if scores is None:
            scores = self._rescored(states)
        # In place: the logits are the largest tensor of a step.
        return scores.add_(self.final_logits_bias) if self.has_logits_bias else scores

    def _rescored(self, states: Tensor) -> Tensor:
        """The head's product [..., vocab] as float32, with the highest logits computed again in float32.

        bfloat16 has eight bits of precision: the logits of neighbouring locations would often be equal, and
        the first location would win.
        """
        product = self.lm_head.bare(states)
        scores = product.float()
        self.lm_head.add_adapters(scores, states)
        if product.dtype is not torch.float32 and self.tied_head:
            best = scores.topk(min(RESCORED_LOGITS, scores.shape[-1]), dim=-1).indices  # [..., best]
            rows = self.shared.weight[best].float()  # [..., best, d_model]
            again = (rows @ states.float().unsqueeze(-1)).squeeze(-1)
            if self.lm_head.beside is not None:
                again += scores.gather(-1, best) - product.gather(-1, best)  # plus the adapters' sums
            scores.scatter_(-1, best, again)
        return scores
