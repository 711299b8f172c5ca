"""Pictures and prompts through the tower and the encoder: in parts, or in recorded work of few shapes.

Both give what each request would get alone: padding is masked, or left out of what is handed back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from florence.engine.graphs import MOST_RECORDED, Buckets, Recorder, Replay, round_up, warn_once
from florence.model.devices import pinned
from florence.model.florence2 import Florence2Model
from florence.model.language import Cache, KeysValues
from florence.model.parts import Parts

Prompts = Sequence[Sequence[int]]


class Encodes(Protocol):
    """`look`: uint8 pixels [pictures, height, width, 3] -> tokens [pictures, tokens, d_model]. `cross`: such
    tokens, a row for each request, and its prompt's ids -> encoder keys and values, each [at least requests,
    heads, length, head_dim]; what is behind a request's own length means nothing. What they return may lie in
    memory that any other recorded work writes to: use it before anything else runs."""

    def look(self, pixels: Tensor) -> Parts[Tensor]: ...

    def cross(self, pictures: Tensor, prompts: Prompts) -> Parts[Cache]: ...


class PlainEncodes:
    """Just what is asked for, part by part."""

    def __init__(self, model: Florence2Model) -> None:
        self._model = model
        self._device = model.language.shared.weight.device

    def look(self, pixels: Tensor) -> Parts[Tensor]:
        tokens = yield from self._model.look_parts(pixels.to(self._device))
        return tokens

    def cross(self, pictures: Tensor, prompts: Prompts) -> Parts[Cache]:
        longest = max(map(len, prompts))
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = None
        if min(map(len, prompts)) < longest:
            mask = mask_of(prompts, pictures.shape[1], longest).to(self._device)
        encoded = yield from self._model.language.encode_parts(pictures, ids.to(self._device), mask)
        return self._model.language.decoder.cross(encoded)


class BucketEncodes:
    """Batches and prompts padded to one of a few sizes, each recorded the second time that it comes.

    Recorded results lie in memory that all recordings share, so a part ends before a replay and never between
    it and the use of its results: a decode step would write over them.
    """

    def __init__(self, model: Florence2Model, buckets: Buckets, recorder: Recorder) -> None:
        self._model, self._buckets, self._recorder = model, buckets, recorder
        self._device = model.language.shared.weight.device
        self._seen: dict[tuple[object, ...], _Recorded] = {}
        self._full = warn_once("encodes")

    def look(self, pixels: Tensor) -> Parts[Tensor]:
        count = len(pixels)
        most = self._buckets.pictures[-1]
        if count > most:
            raise ValueError(f"{count} pictures at once, buffers hold {most}")
        size = round_up(count, self._buckets.pictures)
        (tokens,) = self._run(("look", size), lambda pixels: [self._model.look(pixels)], pixels, rows=size)
        yield from ()  # all of it is one part
        return tokens[:count]

    def cross(self, pictures: Tensor, prompts: Prompts) -> Parts[Cache]:
        size = round_up(len(prompts), self._buckets.pictures)
        longest = round_up(max(map(len, prompts)), self._buckets.prompts)
        ids = pad_prompts(prompts, longest, self._model.config.text.pad_id)
        mask = mask_of(prompts, pictures.shape[1], longest)
        yield
        found = self._run(("cross", size, longest), self._cross, pictures, ids, mask, rows=size)
        layers = len(self._model.language.decoder.layers)
        keys, values = found[:layers], found[layers:]
        count = len(prompts)
        return tuple(KeysValues(key[:count], value[:count]) for key, value in zip(keys, values, strict=True))

    def _cross(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> Sequence[Tensor]:
        encoded = self._model.language.encode(pictures, ids, mask)
        cross = self._model.language.decoder.cross(encoded)
        return [layer.keys for layer in cross] + [layer.values for layer in cross]

    def _run(
        self, key: tuple[object, ...], work: Callable[..., Sequence[Tensor]], *inputs: Tensor, rows: int
    ) -> Sequence[Tensor]:
        """The work's results for these inputs, padded to `rows` with copies of their first one."""
        if key in self._seen:
            return self._seen[key].run(inputs)
        buffers = [fixed_input(value, rows, self._device) for value in inputs]
        if len(self._seen) < MOST_RECORDED:
            self._seen[key] = _Recorded(lambda: work(*buffers), buffers, self._recorder)
        else:
            self._full()
        return work(*buffers)


class _Recorded:
    """Work over fixed input buffers; recorded at its first run."""

    def __init__(
        self, work: Callable[[], Sequence[Tensor]], buffers: Sequence[Tensor], recorder: Recorder
    ) -> None:
        self._work, self._buffers, self._recorder = work, buffers, recorder
        self._replay: tuple[Replay, Sequence[Tensor]] | None = None

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, in fixed tensors. Rows that the inputs don't fill keep what they had."""
        for buffer, value in zip(self._buffers, inputs, strict=True):
            buffer[: len(value)].copy_(pinned(value, buffer.device), non_blocking=True)
        if self._replay is None:
            self._replay = self._recorder.record(self._work)
        replay, results = self._replay
        replay()
        return results


def fixed_input(value: Tensor, rows: int, device: torch.device) -> Tensor:
    """A buffer of `rows` rows on the device that begins with `value`; the others repeat its first row."""
    buffer = value[:1].to(device).repeat(rows, *[1] * (value.dim() - 1))
    buffer[: len(value)].copy_(value)
    return buffer


def pad_prompts(prompts: Prompts, length: int, pad_id: int) -> Tensor:
    """Ids [prompts, length]."""
    return torch.tensor([[*prompt, *[pad_id] * (length - len(prompt))] for prompt in prompts])


def mask_of(prompts: Prompts, picture_tokens: int, length: int) -> Tensor:
    """True on a request's own tokens, [prompts, picture_tokens + length]."""
    own = torch.tensor([picture_tokens + len(prompt) for prompt in prompts])
    return torch.arange(picture_tokens + length) < own[:, None]
