"""Pictures and prompts through the tower and the encoder: in chunks, or in captured work of few shapes.

Both give each request the result that it would get alone: padding is masked, or not returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from florence.engine.device.graphs import (
    MAX_GRAPHS,
    Buckets,
    CapturedWork,
    GraphCapturer,
    round_up,
    warn_once,
)
from florence.engine.device.memory import DeviceMemory
from florence.model.caches import Caches
from florence.model.chunks import Chunks, run_to_end
from florence.model.florence2 import Florence2Model

Prompts = Sequence[Sequence[int]]
"""Token ids of each request's prompt."""


class Encodes(ABC):
    """The two halves of an encode, each in chunks between which decode steps may run."""

    def __init__(self, model: Florence2Model, caches: Caches, memory: DeviceMemory) -> None:
        self._model, self._caches, self._memory = model, caches, memory

    @abstractmethod
    def encode_images(self, pixels: Sequence[Tensor]) -> Chunks[Tensor]:
        """uint8 [height, width, 3] of the host for each picture -> tokens [pictures, tokens, d_model]. They
        may be in memory that other captured work overwrites: copy them before anything else runs."""

    @abstractmethod
    def write_cross_kv(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        """Encode picture tokens [requests, tokens, d_model] with one prompt for each, and write the encoder's
        keys and values into the request's slot of the caches; positions after the request's own length are
        undefined."""


class PlainEncodes(Encodes):
    """Exactly the given pictures and prompts, in chunks."""

    def encode_images(self, pixels: Sequence[Tensor]) -> Chunks[Tensor]:
        return self._model.encode_images_in_chunks(batch_of(pixels, self._memory))

    def write_cross_kv(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        language, longest = self._model.language, max(map(len, prompts))
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = None
        if min(map(len, prompts)) < longest:
            mask = self._memory.upload(mask_of(prompts, pictures.shape[1], longest))
        encoded = yield from language.encode_in_chunks(pictures, self._memory.upload(ids), mask)
        where = self._memory.upload(torch.tensor(slots))
        self._caches.write_cross_kv(where, language.decoder.cross_kv_by_layer(encoded))


class BucketEncodes(Encodes):
    """Batches and prompts padded to one of a few sizes, each captured as a graph on its second use: the first
    use warms up. Shapes beyond `MAX_GRAPHS` run uncaptured.

    Captured work reads fixed buffers, which it shares with other work of the same input shapes, and writes to
    the caches. Its only results are picture tokens, in memory that all graphs share. So no chunk ends between
    a replay and the use of its results, or a decode step could overwrite them.
    """

    def __init__(
        self,
        model: Florence2Model,
        caches: Caches,
        memory: DeviceMemory,
        buckets: Buckets,
        capturer: GraphCapturer,
    ) -> None:
        super().__init__(model, caches, memory)
        self._buckets, self._capturer = buckets, capturer
        self._inputs: dict[tuple[object, ...], Tensor] = {}
        self._seen: dict[tuple[object, ...], CapturedWork] = {}
        self._warn = warn_once("encodes")

    def encode_images(self, pixels: Sequence[Tensor]) -> Chunks[Tensor]:
        (tokens,) = self._run("images", self._encode_images, batch_of(pixels, self._memory))
        yield from ()  # one chunk
        return tokens[: len(pixels)]

    def write_cross_kv(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        yield  # the pictures were a chunk
        longest = round_up(max(map(len, prompts)), self._buckets.prompts)
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = mask_of(prompts, pictures.shape[1], longest)
        self._run("cross_kv", self._write_cross_kv, pictures, ids, mask, torch.tensor(slots))

    def prepare(self, height: int, width: int) -> None:
        """Capture batches of all sizes, with pictures of this size and the shortest bucket of prompts,
        largest first. Writes to the first slot, which must be free."""
        for rows in reversed(self._buckets.pictures):
            pixels = [torch.zeros(height, width, 3, dtype=torch.uint8)] * rows
            for _ in range(2):
                pictures = run_to_end(self.encode_images(pixels)).clone()
                prompts = [[self._model.config.text.eos_id]] * rows
                run_to_end(self.write_cross_kv(pictures, prompts, [0] * rows))

    def _encode_images(self, pixels: Tensor) -> Sequence[Tensor]:
        return [self._model.encode_images(pixels)]

    def _write_cross_kv(self, pictures: Tensor, ids: Tensor, mask: Tensor, slots: Tensor) -> Sequence[Tensor]:
        encoded = self._model.language.encode(pictures, ids, mask)
        self._caches.write_cross_kv(slots, self._model.language.decoder.cross_kv_by_layer(encoded))
        return []

    def _run(self, name: str, work: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Sequence[Tensor]:
        """The results of the work for inputs [rows, ...], some of whose rows may be padding. Raises
        `ValueError` for more rows than the largest bucket has."""
        rows = round_up(len(inputs[0]), self._buckets.pictures)
        key = (name, rows, *(value.shape[1:] for value in inputs))
        if key not in self._seen:
            if len(self._seen) >= MAX_GRAPHS:
                self._warn()
                return work(*map(self._memory.upload, inputs))
            buffers = [self._input((name, index), rows, value) for index, value in enumerate(inputs)]
            self._seen[key] = CapturedWork(partial(work, *buffers), buffers, self._memory, self._capturer)
        self._seen[key].load(inputs)
        return self._seen[key].run()

    def _input(self, name: tuple[str, int], rows: int, value: Tensor) -> Tensor:
        """The buffer [rows, ...] for an input like `value`."""
        shape = (rows, *value.shape[1:])
        key = (name, shape)
        if key not in self._inputs:
            self._inputs[key] = torch.zeros(shape, dtype=value.dtype, device=self._model.device)
        return self._inputs[key]


def batch_of(pixels: Sequence[Tensor], memory: DeviceMemory) -> Tensor:
    """Pictures of the host as one batch of the device, uint8 [pictures, height, width, 3]. Each is uploaded
    from where it lies."""
    uploaded = [memory.upload(picture) for picture in pixels]
    return uploaded[0][None] if len(uploaded) == 1 else torch.stack(uploaded)


def pad_prompts(prompts: Prompts, length: int, pad_id: int) -> Tensor:
    """Token ids [prompts, length]."""
    return torch.tensor([[*prompt, *[pad_id] * (length - len(prompt))] for prompt in prompts])


def mask_of(prompts: Prompts, picture_tokens: int, length: int) -> Tensor:
    """True on a request's own tokens, [prompts, picture_tokens + length]."""
    own = torch.tensor([picture_tokens + len(prompt) for prompt in prompts])
    return torch.arange(picture_tokens + length) < own[:, None]
