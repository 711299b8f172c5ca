"""DaViT, the vision tower (arXiv 2204.03645), for inference: window attention over cells alternates with
attention between channels.

Cells are [pictures, height, width, dim] from the stem to the end, so that linear layers, norms and
convolutions need no transposition; residuals are added by the product before them (`kernels/linear.py`).
Modules have the names of timm's `DaVit`, against which they are tested. Not covered: strides other than 4, 2,
2, 2, and training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from florence.model.chunks import Chunks, run_to_end
from florence.model.config import VisionConfig
from florence.model.encoding import PLAIN, EncodeBackend
from florence.model.kernels.linear import Conv2d, Linear


class WindowAttention(nn.Module):
    """Attention of cells to the cells of their window."""

    def __init__(self, dim: int, heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = Linear(dim, 3 * dim, qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, cells: Tensor, residual: Tensor) -> Tensor:
        """[pictures, height, width, dim] -> the same shape, `residual` added."""
        (height, width), side = cells.shape[1:3], self.window
        if height % side or width % side:  # the zeros take part in attention, as in the original
            cells = F.pad(cells, (0, 0, 0, -width % side, 0, -height % side))
        sizes = {"rows": cells.shape[1] // side, "columns": cells.shape[2] // side, "y": side, "x": side}
        windows = rearrange(
            cells, "pictures (rows y) (columns x) dim -> (pictures rows columns) (y x) dim", **sizes
        )
        queries, keys, values = rearrange(
            self.qkv(windows),
            "windows cells (three heads head_dim) -> three windows heads cells head_dim",
            three=3,
            heads=self.heads,
        )
        mixed = rearrange(
            F.scaled_dot_product_attention(queries, keys, values),
            "(pictures rows columns) heads (y x) head_dim -> pictures (rows y) (columns x) (heads head_dim)",
            **sizes,
        )
        return self.proj.plus(mixed[:, :height, :width], residual)


class ChannelAttention(nn.Module):
    """Attention of channels to the channels of their group, over all cells of a picture.

    `per_picture`: compute in float32, one picture at a time. This is faster on a CPU: its products then read
    views in place, and its bfloat16 products of many small matrices cost more than the conversion.
    """

    def __init__(self, dim: int, groups: int, qkv_bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.per_picture = False
        self.qkv = Linear(dim, 3 * dim, qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, cells: Tensor, residual: Tensor) -> Tensor:
        """[pictures, height, width, dim] -> the same shape, `residual` added."""
        qkv = self.qkv(cells).flatten(1, 2)  # [pictures, cells, 3 * dim]
        if self.per_picture:
            mixed = torch.cat([self._mix(picture.float()).to(qkv.dtype) for picture in qkv.split(1)])
        else:
            mixed = self._mix(qkv)
        return self.proj.plus(mixed.view(cells.shape), residual)

    def _mix(self, qkv: Tensor) -> Tensor:
        """[pictures, cells, 3 * dim] -> [pictures, cells, dim]."""
        queries, keys, values = rearrange(
            qkv,
            "pictures cells (three groups dim) -> three pictures groups cells dim",
            three=3,
            groups=self.groups,
        )
        # Scaled before the product as in the original: tests against the original's answers depend on this
        # rounding.
        scores = (queries * qkv.shape[1] ** -0.5).transpose(-1, -2) @ keys  # [pictures, groups, dim, dim]
        weights = scores.softmax(dim=-1).transpose(-1, -2)
        if self.per_picture:
            # Denormal weights do not change the sum, but a CPU multiplies them fifty times slower.
            weights = weights.masked_fill(weights < torch.finfo(weights.dtype).tiny, 0)
        mixed: Tensor = values @ weights
        return rearrange(mixed, "pictures groups cells dim -> pictures cells (groups dim)")


class ConvPositionalEncoding(nn.Module):
    """Conditional positional encoding (CPVT, arXiv 2102.10882): a depthwise 3x3 convolution, added to its
    input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(dim, dim, 3, groups=dim)
        self._taps: tuple[Tensor, Tensor] | None = None

    def lay_out_taps(self) -> None:
        """Keep a copy of the filters as [9, dim]. Not covered: moving the module to another device
        afterwards."""
        self._taps = self._transposed()

    def by_taps(self) -> tuple[Tensor, Tensor]:
        """The filters [9, dim], row by row, and their bias [dim]."""
        return self._taps or self._transposed()

    def _transposed(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.proj.weight.detach(), cast("Tensor", self.proj.bias)
        return weight.flatten(1).T.contiguous(), bias.detach()

    def forward(self, cells: Tensor) -> Tensor:
        """[pictures, height, width, dim] -> the same shape."""
        return self.proj.plus(cells)


class FeedForward(nn.Module):
    """Two linear layers, applied to each cell."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, activation="gelu")
        self.fc2 = Linear(hidden, dim)

    def forward(self, cells: Tensor, residual: Tensor) -> Tensor:
        """[..., dim] -> the same shape, `residual` added."""
        return self.fc2.plus(self.fc1(cells), residual)


class Block(nn.Module):
    """Positions, attention, positions, feed-forward: pre-norm, with a residual around each."""

    def __init__(self, attention: WindowAttention | ChannelAttention, dim: int, hidden: int) -> None:
        super().__init__()
        self.cpe1 = ConvPositionalEncoding(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.cpe2 = ConvPositionalEncoding(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, cells: Tensor) -> Tensor:
        """[pictures, height, width, dim] -> the same shape."""
        cells = self.cpe1(cells)
        cells = self.cpe2(self.attn(self.norm1(cells), cells))
        result: Tensor = self.mlp(self.norm2(cells), cells)
        return result


class DualBlock(nn.Module):
    """A block of window attention, then one of channel attention; run by `DaViT.chunks`."""

    def __init__(self, config: VisionConfig, stage: int) -> None:
        super().__init__()
        dim, bias = config.dims[stage], config.qkv_bias
        hidden = int(dim * config.mlp_ratio)
        window = WindowAttention(dim, config.heads[stage], config.window, bias)
        self.spatial_block = Block(window, dim, hidden)
        self.channel_block = Block(ChannelAttention(dim, config.groups[stage], bias), dim, hidden)


class Stem(nn.Module):
    """Pixels to the first cells, a quarter as high and wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = Conv2d(3, dim, 7, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, values: Tensor) -> Tensor:
        """[pictures, height, width, 3] -> [pictures, height / 4, width / 4, dim]."""
        result: Tensor = self.norm(self.conv(values))
        return result


class Downsample(nn.Module):
    """Between stages: half the height and width, another dimension."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.conv = Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, cells: Tensor) -> Tensor:
        """[pictures, height, width, inputs] -> [pictures, height / 2, width / 2, outputs]."""
        result: Tensor = self.conv(self.norm(cells))
        return result


class Stage(nn.Module):
    """Blocks over cells of one size; run by `DaViT.chunks`."""

    def __init__(self, config: VisionConfig, stage: int) -> None:
        super().__init__()
        dims = config.dims
        self.downsample = Downsample(dims[stage - 1], dims[stage]) if stage else nn.Identity()
        self.blocks = nn.ModuleList(DualBlock(config, stage) for _ in range(config.depths[stage]))


class DaViT(nn.Module):
    """Normalised pixels to features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.stem = Stem(config.dims[0])
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.dims)))

    def attend_per_picture(self) -> None:
        """Let channel attention compute one picture at a time, which is faster on a CPU."""
        for module in self.modules():
            if isinstance(module, ChannelAttention):
                module.per_picture = True

    def forward(self, values: Tensor) -> Tensor:
        """[pictures, 3, height, width] -> [pictures, dim, height / 32, width / 32]; sizes are multiples of
        32."""
        return run_to_end(self.chunks(values))

    def lay_out_for_gpu(self) -> None:
        """Also keep the filters of depthwise convolutions as taps, the layout that the GPU kernels read."""
        for module in self.modules():
            if isinstance(module, ConvPositionalEncoding):
                module.lay_out_taps()

    def chunks(self, values: Tensor, backend: EncodeBackend = PLAIN) -> Chunks[Tensor]:
        """`forward` in chunks: yields between blocks, which `backend` computes."""
        cells = backend.stem(self.stem, values.permute(0, 2, 3, 1))
        for stage in cast("Iterable[Stage]", self.stages):
            cells = stage.downsample(cells)
            for block in cast("Iterable[DualBlock]", stage.blocks):
                for half in (block.spatial_block, block.channel_block):
                    cells = backend.block(half, cells)
                    yield
        return cells.permute(0, 3, 1, 2)
