"""Pictures and prompts through the tower and the encoder: in parts, or in recorded work of few shapes.

Both give what each request would get alone: padding is masked, or left out of what is handed back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.device.graphs import MOST_RECORDED, Buckets, Recorder, Replay, round_up, warn_once
from florence.model.caches import Caches
from florence.model.chunks import Chunks, run_to_end
from florence.model.devices import pinned
from florence.model.florence2 import Florence2Model

Prompts = Sequence[Sequence[int]]


class Encodes(Protocol):
    """`look`: uint8 pixels [pictures, height, width, 3] -> tokens [pictures, tokens, d_model], which may lie
    in memory that any other recorded work writes to: use them before anything else runs. `cross`: such
    tokens, a row for each request, its prompt's ids, and its slot of the caches, in which its encoder keys
    and values lie then; what is behind its own length means nothing."""

    def look(self, pixels: Tensor) -> Chunks[Tensor]: ...

    def cross(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]: ...


class PlainEncodes:
    """Just what is asked for, part by part."""

    def __init__(self, model: Florence2Model, caches: Caches) -> None:
        self._model, self._caches = model, caches
        self._device = model.language.shared.weight.device

    def look(self, pixels: Tensor) -> Chunks[Tensor]:
        tokens = yield from self._model.look_parts(pixels.to(self._device))
        return tokens

    def cross(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        language, longest = self._model.language, max(map(len, prompts))
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = None
        if min(map(len, prompts)) < longest:
            mask = mask_of(prompts, pictures.shape[1], longest).to(self._device)
        encoded = yield from language.encode_parts(pictures, ids.to(self._device), mask)
        where = torch.tensor(slots, device=self._device)
        self._caches.write_cross(where, language.decoder.cross_by_layer(encoded))


class BucketEncodes:
    """Batches and prompts padded to one of a few sizes, each recorded the second time that it comes.

    What is recorded reads fixed buffers, which shapes with as many rows share, and writes to the caches. Only
    the tokens of pictures are results, in memory that all recordings share: no part ends between a replay and
    their use, or a decode step would write over them.
    """

    def __init__(self, model: Florence2Model, caches: Caches, buckets: Buckets, recorder: Recorder) -> None:
        self._model, self._caches = model, caches
        self._buckets, self._recorder = buckets, recorder
        self._device = model.language.shared.weight.device
        self._inputs: dict[tuple[object, ...], Tensor] = {}
        self._seen: dict[tuple[object, ...], _Recorded] = {}
        self._full = warn_once("encodes")

    def look(self, pixels: Tensor) -> Chunks[Tensor]:
        (tokens,) = self._run("look", self._look, pixels)
        yield from ()  # all of it is one part
        return tokens[: len(pixels)]

    def cross(self, pictures: Tensor, prompts: Prompts, slots: Sequence[int]) -> Chunks[None]:
        yield  # the pictures were a part
        longest = round_up(max(map(len, prompts)), self._buckets.prompts)
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = mask_of(prompts, pictures.shape[1], longest)
        self._run("cross", self._cross, pictures, ids, mask, torch.tensor(slots))

    def prepare(self, height: int, width: int) -> None:
        """Record batches of all sizes, of pictures of this size and prompts of the shortest, largest first.
        Writes to the first slot, which nobody may have yet."""
        for rows in reversed(self._buckets.pictures):
            pixels = torch.zeros(rows, height, width, 3, dtype=torch.uint8)
            for _ in range(2):
                pictures = run_to_end(self.look(pixels)).clone()
                run_to_end(self.cross(pictures, [[self._model.config.text.eos_id]] * rows, [0] * rows))

    def _look(self, pixels: Tensor) -> Sequence[Tensor]:
        return [self._model.look(pixels)]

    def _cross(self, pictures: Tensor, ids: Tensor, mask: Tensor, slots: Tensor) -> Sequence[Tensor]:
        encoded = self._model.language.encode(pictures, ids, mask)
        self._caches.write_cross(slots, self._model.language.decoder.cross_by_layer(encoded))
        return []

    def _run(self, name: str, work: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Sequence[Tensor]:
        """The work's results for these inputs, of which some rows may be padding. Raises `ValueError` for
        more rows than there may be."""
        rows = round_up(len(inputs[0]), self._buckets.pictures)
        key = (name, rows, *(value.shape[1:] for value in inputs))
        if key not in self._seen:
            if len(self._seen) >= MOST_RECORDED:
                self._full()
                return work(*(value.to(self._device) for value in inputs))
            buffers = [self._input((name, place), rows, value) for place, value in enumerate(inputs)]
            self._seen[key] = _Recorded(partial(work, *buffers), buffers, self._recorder)
        return self._seen[key].run(inputs)

    def _input(self, name: tuple[str, int], rows: int, value: Tensor) -> Tensor:
        """The buffer for such an input, of so many rows."""
        shape = (rows, *value.shape[1:])
        key = (name, shape)
        if key not in self._inputs:
            self._inputs[key] = torch.zeros(shape, dtype=value.dtype, device=self._device)
        return self._inputs[key]


class _Recorded:
    """Work over fixed input buffers: its first run warms it up, the second one records it."""

    def __init__(
        self, work: Callable[[], Sequence[Tensor]], buffers: Sequence[Tensor], recorder: Recorder
    ) -> None:
        self._work, self._buffers, self._recorder = work, buffers, recorder
        self._warm = False
        self._replay: tuple[Replay, Sequence[Tensor]] | None = None

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, in fixed tensors but for the first ones. Rows that the inputs don't fill do as the
        first one does: the same request once more."""
        for buffer, value in zip(self._buffers, inputs, strict=True):
            buffer[: len(value)].copy_(pinned(value, buffer.device), non_blocking=True)
            buffer[len(value) :].copy_(buffer[:1])
        if not self._warm:
            results = self._work()
            self._warm = True
            return results
        if self._replay is None:
            self._replay = self._recorder.record(self._work)
        replay, results = self._replay
        replay()
        return results


def pad_prompts(prompts: Prompts, length: int, pad_id: int) -> Tensor:
    """Ids [prompts, length]."""
    return torch.tensor([[*prompt, *[pad_id] * (length - len(prompt))] for prompt in prompts])


def mask_of(prompts: Prompts, picture_tokens: int, length: int) -> Tensor:
    """True on a request's own tokens, [prompts, picture_tokens + length]."""
    own = torch.tensor([picture_tokens + len(prompt) for prompt in prompts])
    return torch.arange(picture_tokens + length) < own[:, None]
