"""Runs requests on the device: a batch of pictures and prompts encoded, a step for all that decode.

Owns tensors and searches. Knows nothing about threads, queues, futures or time limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florence.engine.features import FeatureCache
from florence.engine.reference import Hypothesis, Search, TokenRules, start_search
from florence.engine.request import Request
from florence.model.batch import DecodeState, decode_step
from florence.model.florence2 import Florence2Model
from florence.model.language import KeysValues

DEFAULT_FEATURE_BYTES = 128 * 2**20
"""Room for about a hundred pictures of Florence-2-large in bfloat16."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """One request that is being decoded."""

    request: Request
    search: Search
    state: DecodeState
    picture_tokens: int


class Runner:
    """A model on its device, and what it takes to decode many requests with it.

    `feature_bytes`: memory for what the tower saw in the latest pictures.
    """

    def __init__(self, model: Florence2Model, feature_bytes: int = DEFAULT_FEATURE_BYTES) -> None:
        text, generation = model.config.text, model.config.generation
        self.model = model
        self.features: FeatureCache[Tensor] = FeatureCache(feature_bytes)
        self.device = model.language.shared.weight.device
        self.rules = TokenRules(
            start_id=text.start_id,
            eos_id=text.eos_id,
            forced_bos_id=generation.forced_bos_id,
            forced_eos_id=generation.forced_eos_id,
        )

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> list[Decoding]:
        """Encode pictures and prompts together; each result is what the request would get alone."""
        pictures = self.look(requests)  # [requests, tokens, d_model]
        prompts = [request.prompt_ids for request in requests]
        lengths = [pictures.shape[1] + len(prompt) for prompt in prompts]
        longest = max(len(prompt) for prompt in prompts)
        pad = self.model.config.text.pad_id
        padded = torch.tensor([[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts])
        mask = None
        if min(lengths) < max(lengths):
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [requests, length]
            mask = mask.to(self.device)
        encoded = self.model.encode(pictures, padded.to(self.device), mask)
        cross = self.model.language.decoder.cross(encoded)
        return [
            self._start(request, [layer.row(row, length) for layer in cross], pictures.shape[1])
            for row, (request, length) in enumerate(zip(requests, lengths, strict=True))
        ]

    def look(self, requests: Sequence[Request]) -> Tensor:
        """The requests' pictures as tokens [requests, tokens, d_model]; those seen lately from memory."""

        def encode(pictures: list[NDArray[np.uint8]]) -> Sequence[Tensor]:
            tokens = self.model.look(torch.from_numpy(np.stack(pictures)).to(self.device))
            # Copies, so that one that is remembered does not keep its whole batch.
            return [picture.clone() for picture in tokens] if len(pictures) > 1 else [tokens[0]]

        digests = [request.digest for request in requests]
        return torch.stack(self.features.look(digests, [request.pixels for request in requests], encode))

    @torch.inference_mode()
    def step(self, decodings: Sequence[Decoding]) -> tuple[Tensor, ...]:
        """One decoder step for all; float32 logits [beams, vocab] for the search of each."""
        return decode_step(
            self.model.language,
            [decoding.state for decoding in decodings],
            [decoding.search.parents for decoding in decodings],
            [decoding.search.tokens for decoding in decodings],
        )

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """Whether the length limit, not the model, ended the sequence."""
        if len(hypothesis.token_ids) < request.options.max_length:
            return False
        return self.rules.forced_eos_id is not None or hypothesis.token_ids[-1] != self.rules.eos_id

    def _start(self, request: Request, cross: Sequence[KeysValues], picture_tokens: int) -> Decoding:
        options = request.options
        state = DecodeState(tuple(cross), options.num_beams, options.max_new_tokens)
        return Decoding(request, start_search(options, self.rules), state, picture_tokens)
