"""The definitions of an encode's kernels in plain PyTorch; the kernels are tested against them.

p: pictures. The kernels differ only in this: they sum in another order, round less often, and round attention
weights to the dtype of the values. Needs no triton.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def look_up(pixels: Tensor, table: Tensor, channels: int) -> Tensor:
    """Look up each pixel value: `pixels` uint8 [p, height, width, channels], `table` [channels * levels] ->
    the shape of `pixels`."""
    levels = len(table) // channels
    return table[pixels.long() + torch.arange(channels, device=table.device) * levels]


def position_norm(
    cells: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    next_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """A depthwise 3 x 3 convolution plus its input, and the layer norm of this sum.

    `cells` [p, height, width, dim], padded with zeros; `taps` [9, dim]: the filters, row by row; all others
    [dim]. `next_bias`: the bias of the product whose residual the first result is; it is added to the first
    result after the norm, None for none. Both results have the shape of `cells`.
    """
    dim = cells.shape[-1]
    filters = taps.float().T.reshape(dim, 1, 3, 3)
    values = cells.float().permute(0, 3, 1, 2)
    moved = F.conv2d(values, filters, taps_bias.float(), padding=1, groups=dim)
    total: Tensor = (values + moved).permute(0, 2, 3, 1)
    normed = F.layer_norm(total, (dim,), weight.float(), bias.float(), eps)
    if next_bias is not None:
        total = total + next_bias.float()
    return total.to(cells.dtype).contiguous(), normed.to(cells.dtype).contiguous()


def window_attention(qkv: Tensor, qkv_bias: Tensor | None, heads: int, side: int) -> Tensor:
    """Attention of cells to the cells of their window of `side` by `side`.

    `qkv` [p, height, width, 3 * dim]: queries, keys and values, each of `heads` heads. Where windows reach
    beyond a picture, the missing cells have `qkv_bias` [3 * dim] as queries, keys and values, the product of
    zeros; None: zeros. Returns [p, height, width, dim].
    """
    pictures, height, width, depth = qkv.shape
    rows, columns = -(-height // side), -(-width // side)
    beyond = torch.zeros(depth, device=qkv.device) if qkv_bias is None else qkv_bias.float()
    padded = beyond.repeat(pictures, rows * side, columns * side, 1)
    padded[:, :height, :width] = qkv.float()
    windows = padded.view(pictures, rows, side, columns, side, 3, heads, -1)
    # [3, p, rows, columns, heads, cells, head_dim]
    queries, keys, values = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    mixed = (scores.softmax(-1) @ values).view(pictures, rows, columns, heads, side, side, -1)
    whole = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(pictures, rows * side, columns * side, -1)
    inside: Tensor = whole[:, :height, :width].to(qkv.dtype)
    return inside.contiguous()


def channel_scores(qkv: Tensor, groups: int, splits: int) -> Tensor:
    """Products of the queries and keys of channels, summed over cells.

    `qkv` [p, height, width, 3 * dim], each of `groups` groups of channels. Returns float32 [p, groups,
    splits, group_dim, group_dim]: only the sum over `splits` is defined.
    """
    queries, keys, _ = _groups(qkv, groups)
    parts: Tensor = queries.new_zeros(*queries.shape[:2], splits, queries.shape[-1], queries.shape[-1])
    parts[:, :, 0] = queries.transpose(-1, -2) @ keys
    return parts


def channel_mix(qkv: Tensor, parts: Tensor) -> Tensor:
    """Each channel's mean of the values of its group, weighted by the softmax of its products.

    `parts`: the result of `channel_scores`. Products are divided by the root of the number of cells. Returns
    [p, height, width, dim].
    """
    pictures, height, width, depth = qkv.shape
    values = _groups(qkv, parts.shape[1])[2]
    weights = (parts.sum(2) * (height * width) ** -0.5).softmax(-1)
    mixed = (values @ weights.transpose(-1, -2)).transpose(1, 2)  # [p, cells, groups, group_dim]
    result: Tensor = mixed.reshape(pictures, height, width, depth // 3).to(qkv.dtype)
    return result


def _groups(qkv: Tensor, groups: int) -> Tensor:
    """Queries, keys and values, float32 [3, p, groups, cells, group_dim]."""
    pictures, height, width, _ = qkv.shape
    split: Tensor = qkv.float().view(pictures, height * width, 3, groups, -1)
    return split.permute(2, 0, 3, 1, 4)


def gelu_linear(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (by erf) of a linear layer, rounded once: `states` [..., inner], `weight` [outputs, inner], `bias`
    [outputs] -> [..., outputs]."""
    return F.gelu(F.linear(states.float(), weight.float(), bias.float())).to(states.dtype)


def write_cross(states: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """Write a layer's keys and values of encoder states into the slots of their requests.

    `states` [requests, length, 2 * width]: keys, then values; `slots` int64 [requests]; a slot may be listed
    twice if its states are equal. The caches are [slots, heads, room, head_dim].
    """
    (requests, length, _), (_, heads, _, head_dim) = states.shape, key_cache.shape
    split = states.view(requests, length, 2, heads, head_dim).permute(2, 0, 3, 1, 4)
    for half, cache in zip(split, (key_cache, value_cache), strict=True):
        cache[:, :, :length][slots] = half
