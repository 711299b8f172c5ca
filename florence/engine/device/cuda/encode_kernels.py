"""The table of an encode's Triton kernels; imports triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from florence.engine.device.cuda.kernel import Case, CudaKernel
from florence.model.kernels.cuda import copies, gelu, positions, tower_attention, tower_twins

LEVELS, CHANNELS = 256, 3


@dataclass(frozen=True, slots=True)
class EncodeSizes:
    """Sizes of an example: pictures; `side`, cells along each side of the picture; `dim` of a cell;
    `head_dim` of a head or group of channels; `window`, cells along each side of a window; `length`,
    positions of encoder states, which have `dim` too."""

    pictures: int
    side: int
    dim: int
    head_dim: int
    window: int
    length: int

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim


LARGE = EncodeSizes(16, 48, 1_024, 32, 12, 640)
"""Florence-2-large: the third stage of the tower, in which most of an encode's time goes."""

SMALL = EncodeSizes(2, 18, 96, 32, 12, 70)
"""Windows that reach beyond the picture, a width that is not a power of two, and rows for the products' large
tile."""


@dataclass(frozen=True)
class _Random:
    """Random inputs of an example."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def qkv(self, sizes: EncodeSizes) -> Tensor:
        return self(sizes.pictures, sizes.side, sizes.side, 3 * sizes.dim)


def _position_norm_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    random, dim = _Random(device, dtype), sizes.dim
    cells, taps = random(sizes.pictures, sizes.side, sizes.side, dim), random(9, dim)
    taps_bias, weight, bias, following = random(4, dim)
    filters = taps.T.reshape(dim, 1, 3, 3).contiguous(memory_format=torch.channels_last)

    def dense() -> Sequence[Tensor]:
        moved = F.conv2d(cells.permute(0, 3, 1, 2), filters, taps_bias, padding=1, groups=dim)
        sums = cells + moved.permute(0, 2, 3, 1)
        return sums, F.layer_norm(sums, (dim,), weight, bias)

    arguments = cells, taps, taps_bias, weight, bias, following, 1e-5
    return Case(
        lambda: positions.position_norm(*arguments), lambda: tower_twins.position_norm(*arguments), dense
    )


def _window_attention_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    random, side = _Random(device, dtype), sizes.window
    qkv, bias = random.qkv(sizes), random(3 * sizes.dim)
    arguments = qkv, bias, sizes.heads, side

    def dense() -> Sequence[Tensor]:  # in the model the products before and after it copy windows as well
        whole = sizes.side // side * side
        cells, count = qkv[:, :whole, :whole], sizes.side // side
        windows = cells.reshape(sizes.pictures, count, side, count, side, 3 * sizes.dim)
        rows = windows.transpose(2, 3).reshape(-1, side * side, 3, sizes.heads, sizes.head_dim)
        queries, keys, values = rows.permute(2, 0, 3, 1, 4)
        return (F.scaled_dot_product_attention(queries, keys, values),)

    return Case(
        lambda: (tower_attention.window_attention(*arguments),),
        lambda: (tower_twins.window_attention(*arguments),),
        dense,
    )


def _channel_attention_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    """Both passes."""
    qkv, groups = _Random(device, dtype).qkv(sizes), sizes.heads

    def kernel() -> Sequence[Tensor]:
        return (tower_attention.channel_mix(qkv, tower_attention.channel_scores(qkv, groups)),)

    def twin() -> Sequence[Tensor]:
        return (tower_twins.channel_mix(qkv, tower_twins.channel_scores(qkv, groups, 1)),)

    def dense() -> Sequence[Tensor]:
        split = qkv.view(sizes.pictures, -1, 3, groups, sizes.head_dim)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        weights = (queries * queries.shape[2] ** -0.5).transpose(-1, -2) @ keys
        return ((values @ weights.softmax(-1).transpose(-1, -2)).transpose(1, 2).flatten(2),)

    return Case(kernel, twin, dense)


def _gelu_linear_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    random, dim = _Random(device, dtype), sizes.dim
    states = random(sizes.pictures, sizes.side**2, dim)
    return activated_case(states, random(4 * dim, dim) * dim**-0.5, random(4 * dim))


def activated_case(states: Tensor, weight: Tensor, bias: Tensor) -> Case:
    """A product with GELU after it; the arguments of `gelu_linear`."""

    def dense() -> Sequence[Tensor]:
        return (F.gelu(F.linear(states, weight, bias)),)

    if not gelu.takes(states.dtype):  # the kernel is not used for this dtype
        return Case(dense, dense)
    return Case(
        lambda: (gelu.gelu_linear(states, weight, bias),),
        lambda: (tower_twins.gelu_linear(states, weight, bias),),
        dense,
    )


def _look_up_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    shape = sizes.pictures, 16 * sizes.side, 16 * sizes.side, CHANNELS
    pixels = torch.randint(LEVELS, shape, dtype=torch.uint8, device=device)
    table = _Random(device, dtype)(CHANNELS * LEVELS)
    return Case(
        lambda: (copies.look_up(pixels, table, CHANNELS),),
        lambda: (tower_twins.look_up(pixels, table, CHANNELS),),
    )


def _write_cross_case(device: torch.device, dtype: torch.dtype, sizes: EncodeSizes) -> Case:
    random = _Random(device, dtype)
    states = random(sizes.pictures, sizes.length, 2 * sizes.dim)
    slots = torch.arange(sizes.pictures, device=device)
    shape = sizes.pictures, sizes.heads, sizes.length + 6, sizes.head_dim

    def run(write: Callable[..., None]) -> Callable[[], Sequence[Tensor]]:
        def written() -> Sequence[Tensor]:
            caches = states.new_zeros(shape), states.new_zeros(shape)
            write(states, slots, *caches)
            return caches

        return written

    return Case(run(copies.write_cross), run(tower_twins.write_cross))


_kernel = partial(CudaKernel[EncodeSizes], large=LARGE, small=SMALL)

ENCODE_KERNELS = (
    _kernel("florence::look_up", _look_up_case),
    _kernel("florence::position_norm", _position_norm_case),
    _kernel("florence::window_attention", _window_attention_case),
    _kernel("florence::channel_scores", _channel_attention_case),
    _kernel("florence::channel_mix", _channel_attention_case),
    _kernel("florence::gelu_linear", _gelu_linear_case),
    _kernel("florence::write_cross", _write_cross_case),
)
