"""One decoder step for many requests at once, each with its own number of beams, length and encoder states.

Linear layers run over the rows of all beams of all requests together; attention, by a backend of
`attention.py`, reads only each request's own keys. Knows tensors and caches; the caller decides which tokens
are read next and which past a beam has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor

from florence.model.attention import StepAttention
from florence.model.language import DecoderLayer, LanguageModel


def decode_step(language: LanguageModel, tokens: Tensor, attention: StepAttention) -> Tensor:
    """Advance every row by one of `tokens` int64 [rows], and write its keys and values at its position.

    Returns float32 logits [rows, vocab].
    """
    states = attention.embed(language, tokens)  # [rows, d_model]
    for index, layer in enumerate(cast("Iterable[DecoderLayer]", language.decoder.layers)):
        own, cross = layer.self_attn, layer.encoder_attn
        queries, keys, values = own.project(states)
        mixed = attention.self_attention(queries, keys, values, index)
        states = attention.add_norm(own.out_proj, layer.self_attn_layer_norm, mixed, states)
        mixed = attention.cross_attention(attention.apply(cross.q_proj, states), index)
        states = attention.add_norm(cross.out_proj, layer.encoder_attn_layer_norm, mixed, states)
        wide = attention.apply(layer.fc1, states)
        states = attention.add_norm(layer.fc2, layer.final_layer_norm, wide, states)
    return language.logits(states)


def warm_up_products(language: LanguageModel, rows: int) -> None:
    """Run each kind of matrix product of a step with `rows` rows once: oneDNN prepares a kernel for each
    shape at its first use, and caches it."""
    layer = cast("DecoderLayer", language.decoder.layers[0])
    states = language.shared.weight.new_zeros(rows, language.shared.embedding_dim)
    own = layer.self_attn
    own.out_proj.plus(own.q_proj(states), states)
    language.logits(layer.feed_forward(states))
