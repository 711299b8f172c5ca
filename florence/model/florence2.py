"""The whole network: from pixels and prompt ids to encoder states; `decode.py` runs the decoder steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from florence.model.adapters.lowrank import AdapterBank
from florence.model.chunks import Chunks, run_to_end
from florence.model.config import ModelConfig
from florence.model.encoding import PLAIN, EncodeBackend
from florence.model.kernels.plain import Product, product_unrounded
from florence.model.language import LanguageModel
from florence.model.vision import Normalize, VisionEncoder


class Florence2Model(nn.Module):
    """Florence-2 (arXiv 2311.06242) for inference: a DaViT tower, a projector, and BART."""

    def __init__(self, config: ModelConfig, normalize: Normalize) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision, config.text.d_model, normalize)
        self.language = LanguageModel(config.text)
        self.adapters: AdapterBank | None = None  # beside its layers; None without adapters

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.language.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.language.shared.weight.dtype

    def lay_out_for_gpu(self, product: Product = product_unrounded) -> None:
        """Put the weights into the layout that suits a GPU's products and kernels. `product`: as for
        `LanguageModel.lay_out_for_gpu`."""
        self.vision.tower.lay_out_for_gpu()
        self.language.lay_out_for_gpu(product)

    def with_adapters(self, index: Tensor) -> AbstractContextManager[None]:
        """Within the context, rows of a batch have the adapters in the slots `index` int64 [rows]."""
        return nullcontext() if self.adapters is None else self.adapters.applied(index)

    def encode(self, picture_tokens: Tensor, prompt_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encoder states [rows, picture tokens + length, d_model]; see `LanguageModel.encode`."""
        return self.language.encode(picture_tokens, prompt_ids, mask)

    def encode_images(self, pixels: Tensor, backend: EncodeBackend = PLAIN) -> Tensor:
        """[pictures, height, width, 3] uint8 -> picture tokens [pictures, tokens, d_model]."""
        return run_to_end(self.encode_images_in_chunks(pixels, backend))

    def encode_images_in_chunks(self, pixels: Tensor, backend: EncodeBackend = PLAIN) -> Chunks[Tensor]:
        """`encode_images` in chunks: yields between the blocks of the tower."""
        return self.vision.chunks(pixels, backend)
