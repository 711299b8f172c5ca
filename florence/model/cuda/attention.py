"""The operations of a decode step between its matrix products, by the Triton kernels: an `AttentionBackend`
for NVIDIA GPUs. Imports triton, so it is only imported where a CUDA device computes.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from florence.model.attention import AttentionBackend, StepAttention
from florence.model.cuda.layers import apply, normed
from florence.model.kernels.cuda import attention, norms
from florence.model.kernels.linear import Linear
from florence.model.language import POSITION_OFFSET, LanguageModel


class CudaAttention(StepAttention):
    """Lengths, positions and numbers of beams are read from device memory, so shapes depend on the number of
    rows only."""

    def cross_attention(self, queries: Tensor, layer: int) -> Tensor:
        batch, caches = self._batch, self._caches
        keys, values = caches.cross_keys[layer], caches.cross_values[layer]
        return attention.cross_attention(
            queries, keys, values, batch.slots, batch.encoder_lengths, batch.beams
        )

    def self_attention(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        step, batch = self._step, self._batch
        return attention.self_attention(
            queries,
            keys,
            values,
            self._caches.self_keys[layer],
            self._caches.self_values[layer],
            batch.rows,
            step.positions,
            batch.beams,
            step.beam_indirection,
        )

    def embed(self, language: LanguageModel, tokens: Tensor) -> Tensor:
        decoder, norm = language.decoder, language.decoder.layernorm_embedding
        return norms.embed(
            tokens,
            self._step.positions,
            language.shared.weight,
            decoder.embed_positions.weight,
            norm.weight,
            norm.bias,
            language.scale,
            norm.eps,
            POSITION_OFFSET,
        )

    def apply(self, linear: Linear, states: Tensor) -> Tensor:
        return apply(linear, states)

    def add_norm(self, linear: Linear, norm: nn.LayerNorm, inputs: Tensor, residual: Tensor) -> Tensor:
        return normed(linear, norm, inputs, residual)


CUDA: Final = AttentionBackend(CudaAttention, grouped=True)
