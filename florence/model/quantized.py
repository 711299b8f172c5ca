"""Which layers of a model multiply in int8 or in fp8. Norms, attentions and convolutions, and all other
layers, keep the model's dtype.
"""

from __future__ import annotations

from typing import cast

import torch

from florence.model.davit import Stage
from florence.model.florence2 import Florence2Model
from florence.model.kernels.fp8 import EMULATED, Fp8Products, Fp8Weight, fits
from florence.model.kernels.int8 import Int8Weight
from florence.model.kernels.linear import Linear
from florence.model.language import Attention

STAGE = 2
"""Index of the third stage: nine of twelve pairs of blocks, 61% of an encode's FLOP in Florence-2-large."""


def multiply_in_int8(model: Florence2Model) -> None:
    """Quantise every linear layer of the tower, the text encoder and the decoder, and drop the plain
    weights."""
    with torch.no_grad():
        for part in (model.vision.tower, model.language.encoder, model.language.decoder):
            for module in part.modules():
                if isinstance(module, Linear):
                    module.use(Int8Weight(module.weight.detach(), module.bias))


def multiply_in_fp8(model: Florence2Model, products: Fp8Products = EMULATED) -> None:
    """Quantise the linear layers of the tower's third stage, which has most of its work, and of the text
    encoder, and drop the plain weights. `products`: those of the model's device. Raises `ValueError` where a
    layer is already packed, and so has no plain weight."""
    stage = cast("Stage", model.vision.tower.stages[STAGE])
    with torch.no_grad():
        for part in (stage.blocks, model.language.encoder.layers):
            for module in part.modules():
                if isinstance(module, Linear) and module.packed is not None:
                    raise ValueError("layers that are to multiply in fp8 are packed already")
                if isinstance(module, Attention):
                    module.pack_fused(lambda weight, bias: Fp8Weight(weight, bias, products))
                elif isinstance(module, Linear) and module.weight is not None and fits(module.weight):
                    module.use(Fp8Weight(module.weight.detach(), module.bias, products))
