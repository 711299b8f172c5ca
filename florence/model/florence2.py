"""The whole network: pixels and prompt ids in, encoder states out, then one decoder step after another."""

from __future__ import annotations

from torch import Tensor, nn

from florence.model.chunks import Chunks
from florence.model.config import ModelConfig
from florence.model.language import LanguageModel
from florence.model.vision import Normalize, VisionEncoder


class Florence2Model(nn.Module):
    """Florence-2 for inference (arXiv 2311.06242): a DaViT tower, a projector, and BART."""

    def __init__(self, config: ModelConfig, normalize: Normalize) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision, config.text.d_model, normalize)
        self.language = LanguageModel(config.text)

    def encode(self, picture_tokens: Tensor, prompt_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encoder states [rows, picture tokens + length, d_model]; see `LanguageModel.encode`."""
        return self.language.encode(picture_tokens, prompt_ids, mask)

    def look(self, pixels: Tensor) -> Tensor:
        """[pictures, height, width, 3] uint8 -> picture tokens [pictures, tokens, d_model]."""
        tokens: Tensor = self.vision(pixels)
        return tokens

    def look_parts(self, pixels: Tensor) -> Chunks[Tensor]:
        """`look` in parts: yields between the blocks of the tower."""
        tokens = yield from self.vision.parts(pixels)
        return tokens
