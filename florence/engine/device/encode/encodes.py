"""Runs pictures and prompts through the tower and the encoder: in chunks, or as captured work of a few
shapes.

Either way each request gets the result that it would get alone: padding is masked, or not returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from florence.engine.device.capture.buckets import Buckets, round_down, round_up
from florence.engine.device.capture.graphs import CapturedWork, GraphCapturer
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.device.memory import DeviceMemory
from florence.model.caches import Caches
from florence.model.chunks import Chunks, T, run_to_end, within
from florence.model.encoding import PLAIN, EncodeBackend
from florence.model.florence2 import Florence2Model

Prompts = Sequence[Sequence[int]]
"""Token ids of each request's prompt."""

AdapterIndex = Sequence[int]
"""The slot of each picture's or request's adapter, 0 for none."""


class Encodes:
    """The two halves of an encode, each in chunks between which decode steps may run; `backend` computes
    their layers. This class encodes exactly the given pictures and prompts."""

    def __init__(
        self, model: Florence2Model, caches: Caches, memory: DeviceMemory, backend: EncodeBackend = PLAIN
    ) -> None:
        self._model, self._caches, self._memory, self._backend = model, caches, memory, backend

    def together(self, requests: int) -> int:
        """How many of `requests` waiting requests to encode together."""
        return requests

    def encode_images(self, pixels: Sequence[Tensor], adapters: AdapterIndex) -> Chunks[Tensor]:
        """One host tensor uint8 [height, width, 3] for each picture -> tokens [pictures, tokens, d_model].
        The result may be in memory that other captured work overwrites: copy it before anything else runs."""
        chunks = self._model.encode_images_in_chunks(self._memory.send(pixels), self._backend)
        return (yield from self._with(adapters, chunks))

    def write_cross_kv(
        self, pictures: Tensor, prompts: Prompts, slots: Sequence[int], adapters: AdapterIndex
    ) -> Chunks[None]:
        """Encode picture tokens [requests, tokens, d_model] with one prompt for each, and write the encoder's
        keys and values into the request's slot of the caches; positions after the request's own length are
        undefined."""
        yield from self._with(adapters, self._write(pictures, prompts, slots))

    def _with(self, adapters: AdapterIndex, chunks: Chunks[T]) -> Chunks[T]:
        index = self._memory.upload(torch.tensor(adapters))
        return within(chunks, partial(self._model.with_adapters, index))

    def _write(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        language, longest = self._model.language, max(map(len, prompts))
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = None
        if min(map(len, prompts)) < longest:
            mask = self._memory.upload(mask_of(prompts, pictures.shape[1], longest))
        ids = self._memory.upload(ids)
        encoded = yield from language.encode_in_chunks(pictures, ids, mask, self._backend)
        where = self._memory.upload(torch.tensor(slots))
        self._backend.write_cross_kv(language.decoder, encoded, self._caches, where)


class BucketEncodes(Encodes):
    """Batches and prompts padded to one of a few sizes, each captured as a graph before the first request.
    Pictures of a size other than the prepared one are encoded uncaptured.

    Captured work reads fixed buffers, which all batch sizes share, and writes to the caches. Its only results
    are picture tokens, in memory that all graphs share. So no chunk ends between a replay and the use of its
    results, or a decode step could overwrite them.
    """

    def __init__(
        self,
        model: Florence2Model,
        caches: Caches,
        memory: DeviceMemory,
        buckets: Buckets,
        capturer: GraphCapturer,
        backend: EncodeBackend = PLAIN,
        stream: EncodeStream | None = None,
    ) -> None:
        super().__init__(model, caches, memory, backend)
        self.buckets, self._capturer, self._stream = buckets, capturer, stream or EncodeStream()
        self.pixels: Tensor | None = None  # [pictures, height, width, 3]
        self._picture_adapters = torch.zeros(0)  # [pictures]
        self.towers: dict[int, CapturedWork] = {}  # by pictures
        self.encoders: dict[tuple[int, int], CapturedWork] = {}  # by requests and tokens of the prompt

    def together(self, requests: int) -> int:
        """The largest captured batch that they fill: padding takes a GPU as long as pictures do."""
        return round_down(requests, self.buckets.pictures)

    def encode_images(self, pixels: Sequence[Tensor], adapters: AdapterIndex) -> Chunks[Tensor]:
        rows = round_up(len(pixels), self.buckets.pictures)
        if self.pixels is None or any(picture.shape != self.pixels.shape[1:] for picture in pixels):
            return (yield from super().encode_images(pixels, adapters))
        self.pixels[: len(pixels)].copy_(self._memory.send(pixels))  # the rest keeps old values
        if self._model.adapters is not None:
            self._memory.store(torch.tensor(adapters), self._picture_adapters[: len(pixels)])
        (tokens,) = self.towers[rows].run()
        return tokens[: len(pixels)]

    def write_cross_kv(
        self, pictures: Tensor, prompts: Prompts, slots: Sequence[int], adapters: AdapterIndex
    ) -> Chunks[None]:
        rows = round_up(len(prompts), self.buckets.pictures)
        longest = round_up(max(map(len, prompts)), self.buckets.prompts)
        work = self.encoders.get((rows, longest))
        if work is None:
            yield from super().write_cross_kv(pictures, prompts, slots, adapters)
            return
        yield  # the pictures were a chunk
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = mask_of(prompts, pictures.shape[1], longest)
        work.load([pictures, ids, mask, torch.tensor(slots), torch.tensor(adapters)])
        work.run()

    def prepare(self, height: int, width: int) -> list[bool]:
        """Capture batches of all sizes, with pictures of this size and each bucket of prompts, largest first;
        returns for each whether it could be captured. Writes to the first slot, which must be free."""
        largest, device = self.buckets.pictures[-1], self._model.device
        self.pixels = torch.zeros(largest, height, width, 3, dtype=torch.uint8, device=device)
        self._picture_adapters = torch.zeros(largest, dtype=torch.int64, device=device)
        pictures = torch.zeros(0)
        for rows in reversed(self.buckets.pictures):
            name = f"the encode of {rows} pictures"
            inputs = [self.pixels[:rows], self._picture_adapters[:rows]]
            work = CapturedWork(name, partial(self._encode_images, *inputs), inputs, self._memory)
            (tokens,) = work.warm_up()
            pictures = tokens.clone() if rows == largest else pictures
            self.towers[rows] = work
        for longest in reversed(self.buckets.prompts):
            ids = torch.zeros(largest, longest, dtype=torch.int64, device=device)
            mask = torch.ones(largest, pictures.shape[1] + longest, dtype=torch.bool, device=device)
            slots, adapters = (torch.zeros(largest, dtype=torch.int64, device=device) for _ in range(2))
            self._stream.hold([self.pixels, self._picture_adapters, pictures, ids, mask, slots, adapters])
            for rows in reversed(self.buckets.pictures):
                inputs = [value[:rows] for value in (pictures, ids, mask, slots, adapters)]
                name = f"the encode of {rows} prompts of {longest} tokens"
                work = CapturedWork(name, partial(self._write_cross_kv, *inputs), inputs, self._memory)
                work.warm_up()
                self.encoders[rows, longest] = work
        works = [*self.towers.values(), *self.encoders.values()]
        for work in works:
            work.capture(self._capturer)
        return [work.captured for work in works]

    def _encode_images(self, pixels: Tensor, adapters: Tensor) -> Sequence[Tensor]:
        with self._model.with_adapters(adapters):
            return [self._model.encode_images(pixels, self._backend)]

    def _write_cross_kv(
        self, pictures: Tensor, ids: Tensor, mask: Tensor, slots: Tensor, adapters: Tensor
    ) -> Sequence[Tensor]:
        language = self._model.language
        with self._model.with_adapters(adapters):
            encoded = run_to_end(language.encode_in_chunks(pictures, ids, mask, self._backend))
            self._backend.write_cross_kv(language.decoder, encoded, self._caches, slots)
        return []


def pad_prompts(prompts: Prompts, length: int, pad_id: int) -> Tensor:
    """Token ids int64 [prompts, length], `pad_id` after each prompt."""
    return torch.tensor([[*prompt, *[pad_id] * (length - len(prompt))] for prompt in prompts])


def mask_of(prompts: Prompts, picture_tokens: int, length: int) -> Tensor:
    """Bool [prompts, picture_tokens + length]: false on padding."""
    own = torch.tensor([picture_tokens + len(prompt) for prompt in prompts])
    return torch.arange(picture_tokens + length) < own[:, None]
