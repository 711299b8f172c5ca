"""The layers of an encode by the Triton kernels: an `EncodeBackend` for NVIDIA GPUs. Imports triton, so it is
only imported where a CUDA device computes.

In the tower, each matrix product adds to its residual in place; the product's bias has been added to the
residual before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from florence.model.caches import Caches
from florence.model.cuda.layers import apply, normed
from florence.model.davit import Block, ConvPositionalEncoding, Stem, WindowAttention
from florence.model.encoding import EncodeBackend
from florence.model.kernels.cuda import copies, norms, positions, tower_attention
from florence.model.kernels.linear import Linear
from florence.model.language import Decoder, DecoderLayer, EncoderLayer
from florence.model.vision import Normalize


class CudaEncode(EncodeBackend):
    """The tower's blocks, the text encoder's layers, and what comes before and after them."""

    def normalize(self, normalize: Normalize, pixels: Tensor) -> Tensor:
        values = copies.look_up(pixels, normalize.table, pixels.shape[-1])
        return values.permute(0, 3, 1, 2)

    def stem(self, stem: Stem, values: Tensor) -> Tensor:
        conv, norm = stem.conv, stem.norm
        if conv.bias is None:
            return super().stem(stem, values)
        moved = F.conv2d(values.permute(0, 3, 1, 2), conv.weight, None, conv.stride, conv.padding)
        cells = moved.permute(0, 2, 3, 1)
        rows = cells.reshape(-1, cells.shape[-1])
        return norms.add_norm(rows, conv.bias, None, norm.weight, norm.bias, norm.eps).view(cells.shape)

    def block(self, block: Block, cells: Tensor) -> Tensor:
        attention, feed_forward = block.attn, block.mlp
        residual, states = _positions(block.cpe1, block.norm1, cells, attention.proj)
        qkv = apply(attention.qkv, states)
        if isinstance(attention, WindowAttention):
            bias = attention.qkv.bias
            mixed = tower_attention.window_attention(qkv, bias, attention.heads, attention.window)
        else:
            parts = tower_attention.channel_scores(qkv, attention.groups)
            mixed = tower_attention.channel_mix(qkv, parts)
        cells = _added(attention.proj, mixed, residual)
        residual, states = _positions(block.cpe2, block.norm2, cells, feed_forward.fc2)
        return _added(feed_forward.fc2, apply(feed_forward.fc1, states), residual)

    def layer(self, layer: EncoderLayer, states: Tensor, mask: Tensor | None) -> Tensor:
        mixed = layer.self_attn.mixed(states, mask)
        states = normed(layer.self_attn.out_proj, layer.self_attn_layer_norm, mixed, states)
        return normed(layer.fc2, layer.final_layer_norm, apply(layer.fc1, states), states)

    def write_cross_kv(self, decoder: Decoder, encoded: Tensor, caches: Caches, slots: Tensor) -> None:
        for index, layer in enumerate(cast("Iterable[DecoderLayer]", decoder.layers)):
            both = layer.encoder_attn.fused_keys_values(encoded)
            if both is None:
                return super().write_cross_kv(decoder, encoded, caches, slots)
            copies.write_cross(both, slots, caches.cross_keys[index], caches.cross_values[index])
        return None


def _positions(
    encoding: ConvPositionalEncoding, norm: nn.LayerNorm, cells: Tensor, following: Linear
) -> tuple[Tensor, Tensor]:
    """Cells plus their positions, and the norm of that. The first result includes the bias of `following`
    (unless it is packed), whose product is added to it."""
    taps, bias = encoding.by_taps(), following.bias if following.packed is None else None
    return positions.position_norm(cells.contiguous(), *taps, norm.weight, norm.bias, bias, norm.eps)


def _added(linear: Linear, states: Tensor, residual: Tensor) -> Tensor:
    """`residual`, which includes the bias of `linear` (unless it is packed), plus the product; in place."""
    if linear.packed is not None:
        return linear.plus(states, residual)
    residual.view(-1, linear.out_features).addmm_(states.view(-1, linear.in_features), linear.weight.T)
    linear.add_adapters(residual, states)
    return residual
