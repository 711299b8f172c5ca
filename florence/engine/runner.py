"""Runs requests on the device: pictures and prompts are encoded, and a step is taken for all that decode.

Owns the model, the caches, the searches and the places in them. Knows nothing about threads, queues, futures
or time limits.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from florence.engine.features import FeatureCache
from florence.engine.places import Place, Places
from florence.engine.reference import Hypothesis, TokenRules
from florence.engine.request import MAX_BEAMS, Request
from florence.engine.search import DONE, FAULTY, RUNNING, SearchState
from florence.engine.steps import DenseSteps, Stage, Steps, TightSteps
from florence.errors import EngineError
from florence.model.caches import Caches, CacheSizes
from florence.model.decode import Kernel
from florence.model.florence2 import Florence2Model
from florence.model.language import Cache

DEFAULT_FEATURE_BYTES = 128 * 2**20
"""Room for about a hundred pictures of Florence-2-large in bfloat16."""


@dataclass(slots=True, eq=False)
class Decoding:
    """One request that is being decoded."""

    request: Request
    place: Place
    picture_tokens: int
    encoder_length: int
    steps: int = 0


Outcome = Hypothesis | EngineError


class Runner:
    """A model on its device, and what it takes to decode many requests with it.

    `slots`: requests that are decoded together; as many rows as they need with the checkpoint's own number of
    beams. `feature_bytes`: memory for what the tower saw in the latest pictures. `kernel`: attention for this
    CPU, or None for torch's.
    """

    def __init__(
        self,
        model: Florence2Model,
        slots: int = 16,
        *,
        feature_bytes: int = DEFAULT_FEATURE_BYTES,
        kernel: Kernel | None = None,
        rules: TokenRules | None = None,
    ) -> None:
        text, generation = model.config.text, model.config.generation
        weight = model.language.shared.weight
        rows = max(MAX_BEAMS, slots * generation.num_beams)
        self.model = model
        self.device = weight.device
        self.features: FeatureCache[Tensor] = FeatureCache(feature_bytes)
        self.rules = rules or TokenRules(
            start_id=text.start_id,
            eos_id=text.eos_id,
            forced_bos_id=generation.forced_bos_id,
            forced_eos_id=generation.forced_eos_id,
        )
        self.sizes = CacheSizes(slots, rows, text.max_positions, text.max_positions)
        self._kernel = kernel
        self._dtype = weight.dtype
        self.reset()

    def reset(self) -> None:
        """Forget everybody, with new buffers: after a fault of the device the old ones can't be trusted.

        Raises whatever the device raises, if it is gone for good.
        """
        sizes, text = self.sizes, self.model.config.text
        self.places = Places(sizes.slots, sizes.rows)
        self.features.clear()
        self.caches = Caches(sizes, text.decoder, text.d_model, self.device, self._dtype)
        self.state = SearchState(sizes.slots, sizes.decoder_room, self.rules, self.device)
        stage = Stage(self.model.language, self.caches, self.state)
        self._steps: Steps = TightSteps(stage, self._kernel) if self._kernel else DenseSteps(stage)

    def encode(self, requests: Sequence[Request]) -> list[Decoding]:
        """All parts of `encode_parts`."""
        parts = self.encode_parts(requests)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return cast("list[Decoding]", end.value)

    @torch.inference_mode()
    def encode_parts(self, requests: Sequence[Request]) -> Generator[None, None, list[Decoding]]:
        """Encode pictures and prompts together and give each request its place, for which there must be room.

        What each gets is what it would get alone. Yields between the parts of the work, so that others need
        not wait for all of it.
        """
        pictures = yield from self._look(requests)  # [requests, tokens, d_model]
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
        yield
        cross = self.model.language.decoder.cross(encoded)
        return self._place(requests, cross, lengths, pictures.shape[1])

    def _look(self, requests: Sequence[Request]) -> Generator[None, None, Tensor]:
        """The requests' pictures as tokens [requests, tokens, d_model]; those seen lately from memory, and
        each only once."""
        known = self.features.find([request.digest for request in requests])
        new = {request.digest: request.pixels for request in requests if request.digest not in known}
        if new:
            pixels = torch.from_numpy(np.stack(list(new.values()))).to(self.device)
            tokens = yield from self.model.look_parts(pixels)
            # Copies, so that one that is remembered does not keep its whole batch.
            made = dict(zip(new, (picture.clone() for picture in tokens), strict=True))
            self.features.keep(made)
            known |= made
        return torch.stack([known[request.digest] for request in requests])

    def _place(
        self, requests: Sequence[Request], cross: Cache, lengths: Sequence[int], picture_tokens: int
    ) -> list[Decoding]:
        """Give each request its place and what it needs there; all of them, or none if something fails."""
        decodings: list[Decoding] = []
        try:
            for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
                place = self.places.take(request.options.num_beams)
                decodings.append(Decoding(request, place, picture_tokens, length))
                self.caches.write_cross(place.slot, cross, row, length)
                self.state.start(place.slot, place.rows, request.options)
        except BaseException:
            for decoding in decodings:
                self.drop(decoding)
            raise
        return decodings

    @torch.inference_mode()
    def step(self, decodings: Sequence[Decoding]) -> list[tuple[Decoding, Outcome]]:
        """One decoder step for all of them; those that ended, each with what came of it. Their places are
        free again."""
        self._steps.run(decodings)
        for decoding in decodings:
            decoding.steps += 1
        statuses = self.state.status[[decoding.place.slot for decoding in decodings]].tolist()
        self._tell_tokens(decodings, statuses)
        return [
            (decoding, self._end(decoding, status))
            for decoding, status in zip(decodings, statuses, strict=True)
            if status != RUNNING
        ]

    def drop(self, decoding: Decoding) -> None:
        """Free the places of a request that nobody waits for any more."""
        self.places.give_back(decoding.place)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """Whether the length limit, not the model, ended the sequence."""
        if len(hypothesis.token_ids) < request.options.max_length:
            return False
        return self.rules.forced_eos_id is not None or hypothesis.token_ids[-1] != self.rules.eos_id

    def _end(self, decoding: Decoding, status: int) -> Outcome:
        outcome: Outcome
        if status == DONE:
            outcome = self.state.best(decoding.place.slot)
        else:
            outcome = EngineError("the model gave values that are not numbers for this request")
            self.caches.wipe(decoding.place.slot, list(decoding.place.rows))
        self.drop(decoding)
        return outcome

    def _tell_tokens(self, decodings: Sequence[Decoding], statuses: Sequence[int]) -> None:
        """Call those who want to know each token."""
        for decoding, status in zip(decodings, statuses, strict=True):
            tell = decoding.request.on_token
            if tell is not None and status != FAULTY:
                tell(int(self.state.last_token[decoding.place.slot]))
