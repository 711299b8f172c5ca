"""The definitions of a decode step's kernels in plain PyTorch; the kernels are tested against them.

r: rows, `requests * beams` of them; n: requests; h: heads; d: head_dim. The kernels differ only in the order
of sums and in rounding less often. Rows of absent beams are undefined. Needs no triton.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def self_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    beams: Tensor,
    indirection: Tensor,
) -> Tensor:
    """Write a step's keys and values, and attend to each row's past, including the step's position.

    `queries`, `keys`, `values` [r, h * d], all with the same stride between rows. `key_cache`, `value_cache`
    [cache rows, h, room, d]: row i is written at `rows[i]` and `positions[i]`, int64 [r]; all rows of a
    request have the same position. `beams` int32 [n]: number of beams of each request, which are its first
    rows; 0 for padding. `indirection` int32 [n, beams, room]: the cache row of each position of a beam's
    past. Returns [r, h * d].
    """
    heads, head_dim = key_cache.shape[1], key_cache.shape[3]
    out, width = torch.zeros_like(queries), len(queries) // len(beams)
    for row in _present(beams, width):
        place, position = rows[row], int(positions[row])
        key_cache[place, :, position] = keys[row].view(heads, head_dim)
        value_cache[place, :, position] = values[row].view(heads, head_dim)
    for row in _present(beams, width):
        position = int(positions[row])
        past = torch.arange(position + 1, device=queries.device)
        sources = indirection[row // width, row % width, : position + 1].long()
        sources[position] = rows[row]
        out[row] = _attend(queries[row], key_cache[sources, :, past], value_cache[sources, :, past])
    return out


def cross_attention(
    queries: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, lengths: Tensor, beams: Tensor
) -> Tensor:
    """Attend to the encoder states of each row's request.

    `queries` [r, h * d]. `key_cache`, `value_cache` [cache slots, h, room, d]. `slots` int64, `lengths` (at
    least 1) and `beams` int32, all [n]. Returns [r, h * d].
    """
    out, width = torch.zeros_like(queries), len(queries) // len(beams)
    for row in _present(beams, width):
        slot, length = slots[row // width], int(lengths[row // width])
        keys, values = key_cache[slot, :, :length], value_cache[slot, :, :length]
        out[row] = _attend(queries[row], keys.transpose(0, 1), values.transpose(0, 1))
    return out


def _present(beams: Tensor, width: int) -> list[int]:
    """The rows in use."""
    return [index * width + beam for index, count in enumerate(beams.tolist()) for beam in range(count)]


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one query [h * d] to keys and values [length, h, d]."""
    heads, head_dim = keys.shape[1:]
    scores = torch.einsum("hd,lhd->hl", query.float().view(heads, head_dim), keys.float())
    weights = (scores * head_dim**-0.5).softmax(-1)
    return torch.einsum("hl,lhd->hd", weights, values.float()).flatten().to(query.dtype)


def add_norm(
    product: Tensor, product_bias: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The layer norm of `product + product_bias + residual`; a residual of None is left out.

    `product`, `residual` [r, width]; `product_bias`, `weight`, `bias` [width]. Rounds once, at the end.
    """
    total = product.float() + product_bias.float()
    if residual is not None:
        total = total + residual.float()
    return F.layer_norm(total, weight.shape, weight.float(), bias.float(), eps).to(product.dtype)


def embed(
    tokens: Tensor,
    positions: Tensor,
    table: Tensor,
    places: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    eps: float,
    offset: int,
) -> Tensor:
    """The layer norm of the scaled embeddings of tokens, plus those of their positions.

    `tokens`, `positions` int64 [r]; `table` [vocab, width]; `places` [offset + most positions, width];
    `weight`, `bias` [width]. Returns [r, width], rounded once.
    """
    total = table[tokens].float() * scale + places[positions + offset].float()
    return F.layer_norm(total, weight.shape, weight.float(), bias.float(), eps).to(table.dtype)


def window_sums(
    logits: Tensor,
    normalizers: Tensor,
    tokens: Tensor,
    parent_rows: Tensor,
    rows: Tensor,
    slots: Tensor,
    generated: Tensor,
    widths: Tensor,
    windows: Tensor,
    first: int,
    count: int,
) -> None:
    """For each chosen token and each of `widths`, sum the probabilities of the tokens at most that far away,
    among the `count` tokens from `first` on. Writes nothing for a chosen token outside these.

    `logits` float32 [r, vocab] and `normalizers` [r]: a log-probability is a logit minus its row's
    normalizer. `tokens`, `parent_rows` int64 [n, beams]: each beam's new token, and the row whose logits it
    was chosen from. `rows` int64 [r]: cache rows. `slots` int64 [n]. `generated` int64 [slots]: the position
    of the token. `widths` int64 [w]. Writes `windows` float32 [cache rows, positions, w].
    """
    beams = tokens.shape[1]
    for place, token in enumerate(tokens.flatten().tolist()):
        if not first <= token < first + count:
            continue
        parent, position = int(parent_rows.flatten()[place]), generated[slots[place // beams]]
        probabilities = (logits[parent, first : first + count] - normalizers[parent]).exp()
        distances = (torch.arange(first, first + count, device=tokens.device) - token).abs()
        for index, width in enumerate(widths.tolist()):
            windows[rows[place], position, index] = probabilities[distances <= width].sum()


def shrink(states: Tensor, index: Tensor, down: Tensor, rank: int, parts: int) -> Tensor:
    """`states` [rows, inputs] times the `down` of each row's adapter, for each of `parts` layers: float32
    [rows, parts * rank]. `index` int64 [rows]: slots; for rows with slot 0 the result is undefined. `down`
    [parts * slots * rank, inputs]."""
    own = down.view(parts, -1, rank, down.shape[1])[
        :, (index - 1).clamp_min(0)
    ]  # [parts, rows, rank, inputs]
    return torch.einsum("prki,ri->rpk", own.float(), states.float()).flatten(1)


def expand(thin: Tensor, index: Tensor, up: Tensor, total: Tensor, parts: int) -> None:
    """Add `thin` [rows, parts * rank] times the `up` of each row's adapter to `total` [rows, parts *
    outputs], in place; rows with slot 0 stay unchanged. `up` [parts * outputs, slots * rank]."""
    rows, rank = len(thin), thin.shape[1] // parts
    own = up.view(parts, len(up) // parts, -1, rank)[:, :, (index - 1).clamp_min(0)]
    added = torch.einsum("pork,rpk->rpo", own.float(), thin.view(rows, parts, rank)).flatten(1)
    total.copy_(torch.where((index > 0)[:, None], total.float() + added, total.float()))
