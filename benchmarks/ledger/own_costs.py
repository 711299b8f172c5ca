"""What each of the project's GPU kernels moves and computes, from a call's arguments, which may be fake.

Imports triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor

from florence.model.kernels.cuda import positions, tower_attention
from ledger.own import Cost, Load


def bytes_of(*tensors: Tensor) -> float:
    """Bytes of all elements of these tensors."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _self_attention_cost(load: Load, queries: Tensor, *arguments: Tensor) -> tuple[float, float]:
    """Bytes and FLOP of self-attention over the beams' pasts."""
    values = load.requests * load.beams * queries.shape[1]
    past = 2 * (load.length + 1) * values * queries.element_size()
    return 4 * bytes_of(queries) + past, 4 * load.length * values


def _cross_attention_cost(load: Load, queries: Tensor, *arguments: Tensor) -> tuple[float, float]:
    """Bytes and FLOP of attention to the encoder states."""
    read = 2 * load.requests * load.encoder_length * queries.shape[1] * queries.element_size()
    flop = 4 * load.requests * load.beams * load.encoder_length * queries.shape[1]
    return 2 * bytes_of(queries) + read, flop


def _add_norm_cost(
    load: Load, product: Tensor, product_bias: Tensor, residual: Tensor | None, *arguments: object
) -> tuple[float, float]:
    """Bytes and FLOP of a residual sum with layer normalization."""
    return (2 if residual is None else 3) * bytes_of(product), 8.0 * product.numel()


def _embed_cost(
    load: Load, tokens: Tensor, positions: Tensor, table: Tensor, *arguments: object
) -> tuple[float, float]:
    """Bytes and FLOP of the embeddings of a step's tokens."""
    values = len(tokens) * table.shape[1]
    return 3.0 * values * table.element_size(), 8.0 * values


def _scan_cost(load: Load, logits: Tensor, *arguments: object) -> tuple[float, float]:
    """Bytes and FLOP of the search for the best tokens of each row."""
    # Each program reads its part twice, but the second time from the cache.
    rows = load.requests * load.beams
    return rows * (4.0 * logits.shape[1] + 16 * load.length), 4.0 * rows * logits.shape[1]


def _merge_cost(load: Load, sums: Tensor, keys: Tensor, *arguments: object) -> tuple[float, float]:
    """Bytes and FLOP of merging the parts of a scan."""
    return bytes_of(sums, keys), 2.0 * keys.numel()


def _choose_cost(load: Load, *arguments: object) -> tuple[float, float]:
    """Bytes and FLOP of choosing the next beams and moving their histories."""
    positions = load.requests * load.beams * load.length
    return 2.0 * (8 + 8 + 4 + 4) * positions, positions


def _windows_cost(load: Load, logits: Tensor, *arguments: Any) -> tuple[float, float]:
    """Bytes and FLOP of the window sums of the ordered scores."""
    scores = float(load.requests * load.beams * arguments[-1])  # the last one is the number of ordered scores
    return 4 * scores, 2 * scores


def _shrink_cost(
    load: Load, states: Tensor, index: Tensor, down: Tensor, rank: int, parts: int
) -> tuple[float, float]:
    """Bytes and FLOP of the adapters' first product."""
    # Cost model: all adapter slots in use, each slot's matrices read once.
    made = rank * parts
    read = min(load.requests / (len(down) / made), 1.0) * bytes_of(down)
    return bytes_of(states) + read + 4.0 * len(states) * made, 2.0 * states.numel() * made


def _expand_cost(
    load: Load, thin: Tensor, index: Tensor, up: Tensor, total: Tensor, parts: int
) -> tuple[float, float]:
    """Bytes and FLOP of the adapters' second product."""
    rank = thin.shape[1] // parts
    read = min(load.requests / (up.shape[1] / rank), 1.0) * bytes_of(up)
    return 2 * bytes_of(total) + read + bytes_of(thin), 2.0 * total.numel() * rank


def _quantize_cost(load: Load, rows: Tensor) -> tuple[float, float]:
    """Bytes and FLOP of quantizing rows."""
    return bytes_of(rows) + rows.numel() + 4.0 * len(rows), 3.0 * rows.numel()


def _position_norm_cost(load: Load, cells: Tensor, *arguments: object) -> tuple[float, ...]:
    """Bytes and FLOP of a positional convolution with layer normalization."""
    # A strip's border is counted as read from memory, never from a cache; sums and norms are written.
    rows, columns = positions.strip_of(cells.shape)
    read = (rows + 2) * (columns + 2) / (rows * columns)
    return (read + 2) * bytes_of(cells), 18.0 * cells.numel()


def _window_attention_cost(
    load: Load, qkv: Tensor, bias: Tensor | None, heads: int, side: int
) -> tuple[float, ...]:
    """Bytes, FLOP needed and FLOP done of attention within windows."""
    pictures, height, width, depth = qkv.shape
    windows = pictures * -(-height // side) * -(-width // side)
    cells, per_pair = side * side, 4.0 * windows * depth / 3
    blocks = tower_attention.WINDOW_QUERIES, tower_attention.WINDOW_KEYS
    queries, keys = (-(-cells // block) * block for block in blocks)
    return 4 / 3 * bytes_of(qkv), per_pair * cells**2, per_pair * queries * keys


def _channel_scores_cost(load: Load, qkv: Tensor, groups: int) -> tuple[float, ...]:
    """Bytes and FLOP of the scores of attention over channels."""
    return 2 / 3 * bytes_of(qkv), 2.0 * qkv.numel() / 3 * (qkv.shape[-1] // 3 // groups)


def _channel_mix_cost(load: Load, qkv: Tensor, parts: Tensor) -> tuple[float, ...]:
    """Bytes and FLOP of mixing channels by their scores."""
    # Each program reads all parts of its group.
    read = bytes_of(parts) * parts.shape[2]
    return 2 / 3 * bytes_of(qkv) + read, 2.0 * qkv.numel() / 3 * parts.shape[-1]


def _gelu_linear_cost(load: Load, states: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, ...]:
    """Bytes and FLOP of a linear layer with GELU."""
    rows = states.numel() // states.shape[-1]
    moved = bytes_of(states, weight) + rows * len(weight) * states.element_size()
    return moved, 2.0 * rows * weight.numel()


def _look_up_cost(load: Load, pixels: Tensor, table: Tensor, channels: int) -> tuple[float, ...]:
    """Bytes and FLOP of looking up pixel values in a table."""
    return bytes_of(pixels) + pixels.numel() * table.element_size(), 0.0


def _write_cross_cost(load: Load, states: Tensor, *arguments: object) -> tuple[float, ...]:
    """Bytes and FLOP of writing the keys and values of cross-attention."""
    return 2 * bytes_of(states), 0.0


COSTS: Final[Mapping[str, tuple[Cost, str]]] = MappingProxyType(
    {
        "florence::self_attention": (_self_attention_cost, "own"),
        "florence::cross_attention": (_cross_attention_cost, "own"),
        "florence::add_norm": (_add_norm_cost, "own"),
        "florence::embed": (_embed_cost, "own"),
        "florence::gelu_linear": (_gelu_linear_cost, "own product"),
        "florence::window_sums": (_windows_cost, "own"),
        "florence::scan": (_scan_cost, "own"),
        "florence::merge": (_merge_cost, "own"),
        "florence::choose": (_choose_cost, "own"),
        "florence::shrink": (_shrink_cost, "own"),
        "florence::expand": (_expand_cost, "own"),
        "florence::quantize_rows": (_quantize_cost, "own"),
        "florence::look_up": (_look_up_cost, "own"),
        "florence::position_norm": (_position_norm_cost, "own"),
        "florence::window_attention": (_window_attention_cost, "attention, head of 32"),
        "florence::channel_scores": (_channel_scores_cost, "own"),
        "florence::channel_mix": (_channel_mix_cost, "own"),
        "florence::write_cross": (_write_cross_cost, "own"),
    }
)
"""The cost of each kernel's operation, and its class of costs, as `costs.CLASSES` names it."""
