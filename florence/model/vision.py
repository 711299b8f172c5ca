"""uint8 pixels to picture tokens: normalisation, the DaViT tower (`davit.py`), positions and projection, as
in the original's `_encode_image` (modeling_florence2.py).

Knows tensors only; pictures have been resized before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from florence.model.chunks import Chunks
from florence.model.config import VisionConfig
from florence.model.davit import DaViT
from florence.model.encoding import PLAIN, EncodeBackend
from florence.model.kernels.linear import Linear

LEVELS = 256


class Normalize(nn.Module):
    """uint8 pixels to the tower's input, by a table with one row for each level and channel.

    The table is computed as the original does: level / 255 in float64 rounded to float32, then mean and
    standard deviation in float32. A look-up is exact on every device.
    """

    table: Tensor
    offsets: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], rescale: float) -> None:
        super().__init__()
        levels = (torch.arange(LEVELS, dtype=torch.float64) * rescale).to(torch.float32)
        columns = [(levels - torch.tensor(m)) / torch.tensor(s) for m, s in zip(mean, std, strict=True)]
        self.register_buffer("table", torch.cat(columns), persistent=False)  # [channels * levels]
        self.register_buffer("offsets", torch.arange(len(columns)) * LEVELS, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[pictures, height, width, 3] uint8 -> [pictures, 3, height, width], channels last in memory."""
        values = self.table[pixels.long() + self.offsets]  # [pictures, height, width, 3]
        return rearrange(values, "pictures height width channels -> pictures channels height width")


class Projector(nn.Module):
    """Tower features to picture tokens of the language model.

    Adds the learned position of each cell and the first row of the temporal table, prepends the mean of all
    cells, projects to `d_model` and normalises.
    """

    temporal: Tensor

    def __init__(self, config: VisionConfig, d_model: int) -> None:
        super().__init__()
        dim = config.dims[-1]
        self.rows = nn.Embedding(config.max_positions, dim // 2)
        self.columns = nn.Embedding(config.max_positions, dim - dim // 2)
        self.register_buffer("temporal", torch.empty(config.max_frames, dim))
        self.projection = Linear(dim, d_model, bias=False)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, features: Tensor) -> Tensor:
        """[pictures, dim, height, width] -> [pictures, 1 + height * width, d_model]."""
        height, width = features.shape[-2:]
        cells = rearrange(features, "pictures dim height width -> pictures height width dim")
        columns = self.columns.weight[:width].expand(height, -1, -1)  # [height, width, dim - dim // 2]
        rows = self.rows.weight[:height, None].expand(-1, width, -1)  # [height, width, dim // 2]
        cells = cells + torch.cat([columns, rows], dim=-1)  # the column's half first, as in the original
        cells = rearrange(cells, "pictures height width dim -> pictures (height width) dim")
        cells = cells + self.temporal[0]
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
        projected: Tensor = self.norm(self.projection(tokens))
        return projected


class VisionEncoder(nn.Module):
    """Pixels to picture tokens."""

    def __init__(self, config: VisionConfig, d_model: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.tower = DaViT(config)
        self.projector = Projector(config, d_model)

    def chunks(self, pixels: Tensor, backend: EncodeBackend = PLAIN) -> Chunks[Tensor]:
        """[pictures, height, width, 3] uint8 -> [pictures, picture tokens, d_model], yielding between the
        blocks of the tower."""
        features = yield from self.tower.chunks(backend.normalize(self.normalize, pixels), backend)
        tokens: Tensor = self.projector(features)
        return tokens
