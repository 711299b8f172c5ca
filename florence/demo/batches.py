"""Makes training batches: scenes drawn, questions chosen, all as tensors. Batch n is always the same.

Knows nothing about the network. Answers of a picture go into groups of like length, to spare padding.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from florence.demo.drawing import draw_scene
from florence.demo.plan import Plan
from florence.demo.scenes import Limits, Scene, Split, make_scene, scene_rng
from florence.demo.truths import Question, questions, sayable
from florence.demo.typeface import Typeface
from florence.demo.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, TONES, WORD, WORDS
from florence.regions import BINS
from florence.tasks import TASKS, build_prompt

PAD: Final = 1
START: Final = 2  # the decoder's first input, </s>
IGNORED: Final = -100
_GROUPS: Final = 3
_STRIDE: Final = 32  # pixels of a picture token


@dataclass(frozen=True)
class Group:
    """Some of a batch's questions. R questions, P prompt tokens, T answer tokens.

    owner: [R] which picture. prompt: [R, P], PAD after its end. inputs, labels: [R, T] of the decoder.
    """

    owner: Tensor
    prompt: Tensor
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    pixels: uint8 [B, H, W, 3]. grounds: [B, 2] tone and texture of the background. things: [N, 10] owner,
    picture token, shape, colour, size, word (or -1), and the box in bins.
    """

    pixels: Tensor
    grounds: Tensor
    things: Tensor
    groups: tuple[Group, ...]


def draw_lots(rng: np.random.Generator, typeface: Typeface, limits: Limits) -> Scene:
    """A scene with at least one thing, all of whose answers can be generated."""
    while not sayable(scene := make_scene(rng, typeface, limits)):
        pass
    return scene


class Batches(Dataset[Batch]):
    """The training batches of a plan by step."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._typeface = Typeface()

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> Batch:
        stage, _ = self._plan.stage_at(step)
        pixels, grounds, things, asked = [], [], [], []
        for owner in range(self._plan.batch):
            rng = scene_rng(Split.TRAIN, self._plan.seed, step * self._plan.batch + owner)
            scene = draw_lots(rng, self._typeface, stage.limits)
            side = self._plan.sizes.side
            image = draw_scene(scene, self._typeface).resize((side, side), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.array(image)))
            grounds.append([tuple(TONES).index(scene.tone), TEXTURES.index(scene.texture)])
            things += _thing_rows(scene, owner, side // _STRIDE)
            asked += [(owner, question) for question in self._choose(scene, rng, stage.answers)]
        groups = self._groups(asked)
        return Batch(torch.stack(pixels), torch.tensor(grounds), torch.tensor(things), groups)

    def _choose(self, scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
        if not count:
            return []
        possible = questions(scene, rng)
        shares = np.array([self._plan.shares[question.task] for question in possible])
        chosen = rng.choice(len(possible), count, replace=False, p=shares / shares.sum())
        return [possible[index] for index in chosen]

    def _groups(self, asked: list[tuple[int, Question]]) -> tuple[Group, ...]:
        encoded = []
        for owner, question in asked:
            prompt = build_prompt(TASKS[question.task], question.text)
            pair = self._tokenizer.encode_batch([prompt, question.answer])
            encoded.append((owner, pair[0].ids, pair[1].ids))
        encoded.sort(key=lambda row: len(row[2]))
        bounds = np.linspace(0, len(encoded), _GROUPS + 1).astype(int)
        parts = (encoded[start:stop] for start, stop in itertools.pairwise(bounds))
        return tuple(_group(part) for part in parts if part)


def _group(rows: list[tuple[int, list[int], list[int]]]) -> Group:
    prompt = _padded([row[1] for row in rows], PAD)
    labels = _padded([row[2] for row in rows], IGNORED)
    inputs = torch.full_like(labels, START)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, PAD)
    return Group(torch.tensor([row[0] for row in rows]), prompt, inputs, labels)


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _thing_rows(scene: Scene, owner: int, cells: int) -> list[list[int]]:
    """A row for each thing; where two share a picture token only the one in front."""
    rows: dict[int, list[int]] = {}
    shapes, colours, sizes = (*SHAPES, WORD), tuple(COLOURS), ("", *SIZES)
    for layer in scene.layers:
        thing = scene.things[layer]
        x, y = thing.centre
        cell = int(y / scene.height * cells) * cells + int(x / scene.width * cells)
        lengths = (scene.width, scene.height, scene.width, scene.height)
        bins = [min(max(int(v / n * BINS), 0), BINS - 1) for v, n in zip(thing.box, lengths, strict=True)]
        rows[cell] = [
            owner, cell, shapes.index(thing.shape), colours.index(thing.colour), sizes.index(thing.size),
            WORDS.index(thing.text) if thing.text else -1, *bins,
        ]  # fmt: skip
    return list(rows.values())
