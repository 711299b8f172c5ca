"""The interface through which the layers of an encode are computed, so that a device can replace the modules'
own operations.

`EncodeBackend` has one method for each part of an encode whose operations a device may fuse. It calls the
modules, on any device; `CompiledEncode` lets `torch.compile` fuse the blocks of the tower. Knows modules and
tensors; the engine decides which backend a device gets.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:  # they import this module
    from florence.model.caches import Caches
    from florence.model.davit import Block, Stem
    from florence.model.language import Decoder, EncoderLayer
    from florence.model.vision import Normalize

log = logging.getLogger(__name__)

SHAPES: Final = 256
"""Most shapes that `torch.compile` may compile: more than all combinations of batch sizes and stages."""


class EncodeBackend:
    """The parts of an encode; this class runs the modules as they are."""

    def normalize(self, normalize: Normalize, pixels: Tensor) -> Tensor:
        """uint8 [pictures, height, width, 3] -> [pictures, 3, height, width] of the model's dtype, channels
        last in memory."""
        values: Tensor = normalize(pixels)
        return values

    def stem(self, stem: Stem, values: Tensor) -> Tensor:
        """[pictures, height, width, 3] -> cells [pictures, height / 4, width / 4, dim]."""
        cells: Tensor = stem(values)
        return cells

    def block(self, block: Block, cells: Tensor) -> Tensor:
        """A block of the tower: [pictures, height, width, dim] -> the same shape."""
        result: Tensor = block(cells)
        return result

    def layer(self, layer: EncoderLayer, states: Tensor, mask: Tensor | None) -> Tensor:
        """A layer of the text encoder: [rows, length, d_model] -> the same shape; `mask` as in
        `Attention.forward`."""
        result: Tensor = layer(states, mask)
        return result

    def write_cross_kv(self, decoder: Decoder, encoded: Tensor, caches: Caches, slots: Tensor) -> None:
        """Write the keys and values of encoder states [requests, length, d_model] into `slots` int64
        [requests]."""
        caches.write_cross_kv(slots, decoder.cross_kv_by_layer(encoded))


PLAIN: Final = EncodeBackend()
"""Shared by all, since it has no state."""


class CompiledEncode(EncodeBackend):
    """Runs the tower's blocks by `torch.compile`; each shape is compiled at its first use. If that fails, the
    log says why, and the blocks run uncompiled.

    `compiler`: the name of a backend of `torch.compile`.
    """

    def __init__(self, compiler: str = "inductor") -> None:
        self._compiler = compiler
        self._run: Any = None
        self._failed = False

    def block(self, block: Block, cells: Tensor) -> Tensor:
        if self._failed:
            return super().block(block, cells)
        try:
            return self._compiled(block, cells)
        except Exception as error:
            log.warning("torch.compile can't compute the tower: it runs uncompiled", exc_info=error)
            self._failed = True
            return super().block(block, cells)

    def _compiled(self, block: Block, cells: Tensor) -> Tensor:
        if self._run is None:
            # One function for all blocks, so that blocks of equal shapes share compiled code.
            self._run = torch.compile(super().block, fullgraph=True, dynamic=False, backend=self._compiler)
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            result: Tensor = self._run(block, cells)
        return result
