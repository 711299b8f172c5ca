"""Makes training batches: draws scenes, chooses questions, and makes tensors. Batch n is always the same.

Knows nothing about the network. Answers are grouped by length to reduce padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from florence.demo.training.config import TOKEN_IDS, TrainingConfig, TrainingStage
from florence.demo.world.drawing import draw_scene, random_scene
from florence.demo.world.ground_truth import Question, questions
from florence.demo.world.scenes import Scene, Split, Thing, scene_rng
from florence.demo.world.shapes import MAX_CORNERS
from florence.demo.world.typeface import Typeface
from florence.demo.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, TONES, WORD, WORDS
from florence.model.config import STRIDE
from florence.types.regions import BINS
from florence.types.tasks import TASKS

PAD: Final = TOKEN_IDS["pad_token_id"]
START: Final = TOKEN_IDS["decoder_start_token_id"]
IGNORED: Final = -100
_GROUPS: Final = 3


class AnswerGroup(NamedTuple):
    """A group of a batch's questions. R: questions, P: prompt tokens, T: answer tokens.

    `owner` [R]: index of the picture. `prompt` [R, P]: PAD after its end. `inputs`, `labels` [R, T]: of the
    decoder.
    """

    owner: Tensor
    prompt: Tensor
    inputs: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """The data of one training step.

    `pixels`: uint8 [B, H, W, 3]. `grounds` [B, 2]: tone and texture of the background. `things` [N, 10]:
    owner, picture token, shape, colour, size, word (or -1), and the box in bins. `outlines` [N, 24]: vertices
    as in answers, in bins, IGNORED after the last.
    """

    pixels: Tensor
    grounds: Tensor
    things: Tensor
    outlines: Tensor
    groups: tuple[AnswerGroup, ...]

    def to(self, device: torch.device) -> Batch:
        pixels, grounds, things, outlines = (table.to(device) for table in self[:4])
        groups = tuple(AnswerGroup(*(tensor.to(device) for tensor in group)) for group in self.groups)
        return Batch(pixels, grounds, things, outlines, groups)


class Batches(Dataset[Batch]):
    """The training batches of a plan by step."""

    def __init__(self, plan: TrainingConfig, tokenizer: Tokenizer) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._typeface = Typeface()

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> Batch:
        stage, _ = self._plan.stage_at(step)
        pixels, grounds, things, outlines, asked = [], [], [], [], []
        for owner in range(self._plan.batch):
            rng = scene_rng(Split.TRAIN, self._plan.seed, step * self._plan.batch + owner)
            scene = random_scene(rng, self._typeface, stage.limits)
            side = self._plan.sizes.side
            image = draw_scene(scene, self._typeface).resize((side, side), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.array(image)))
            grounds.append([tuple(TONES).index(scene.tone), TEXTURES.index(scene.texture)])
            seen = _things_by_cell(scene, side // STRIDE)
            things += [_thing_row(scene, thing, owner, cell) for cell, thing in seen.items()]
            outlines += [_outline_row(scene, thing) for thing in seen.values()]
            asked += [(owner, question) for question in self._choose(scene, rng, stage)]
        groups = self._groups(asked)
        return Batch(
            torch.stack(pixels), torch.tensor(grounds), torch.tensor(things), torch.tensor(outlines), groups
        )

    def _choose(self, scene: Scene, rng: np.random.Generator, stage: TrainingStage) -> list[Question]:
        if not stage.answers:
            return []
        possible = questions(scene, rng)
        shares = np.array([stage.shares[question.task] for question in possible])
        chosen = rng.choice(len(possible), stage.answers, replace=False, p=shares / shares.sum())
        return [possible[index] for index in chosen]

    def _groups(self, asked: list[tuple[int, Question]]) -> tuple[AnswerGroup, ...]:
        encoded = []
        for owner, question in asked:
            prompt = TASKS.build_prompt(TASKS[question.task], question.text)
            pair = self._tokenizer.encode_batch([prompt, question.answer])
            encoded.append((owner, pair[0].ids, pair[1].ids))
        encoded.sort(key=lambda row: len(row[2]))
        bounds = np.linspace(0, len(encoded), _GROUPS + 1).astype(int)
        parts = (encoded[start:stop] for start, stop in itertools.pairwise(bounds))
        return tuple(_group(part) for part in parts if part)


def _group(rows: list[tuple[int, list[int], list[int]]]) -> AnswerGroup:
    prompt = _padded([row[1] for row in rows], PAD)
    labels = _padded([row[2] for row in rows], IGNORED)
    inputs = torch.full_like(labels, START)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, PAD)
    return AnswerGroup(torch.tensor([row[0] for row in rows]), prompt, inputs, labels)


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _things_by_cell(scene: Scene, cells: int) -> dict[int, Thing]:
    """The thing at each picture token; where two share one, only the one in front."""
    seen = {}
    for layer in scene.layers:
        x, y = scene.things[layer].centre
        seen[int(y / scene.height * cells) * cells + int(x / scene.width * cells)] = scene.things[layer]
    return seen


def _thing_row(scene: Scene, thing: Thing, owner: int, cell: int) -> list[int]:
    shapes, colours, sizes = (*SHAPES, WORD), tuple(COLOURS), ("", *SIZES)
    return [
        owner, cell, shapes.index(thing.shape), colours.index(thing.colour), sizes.index(thing.size),
        WORDS.index(thing.text) if thing.text else -1, *_bins(thing.box, scene),
    ]  # fmt: skip


def _outline_row(scene: Scene, thing: Thing) -> list[int]:
    bins = _bins(thing.polygon.ravel().tolist(), scene)
    return bins + [IGNORED] * (2 * MAX_CORNERS - len(bins))


def _bins(coordinates: Iterable[float], scene: Scene) -> list[int]:
    """Coordinates x, y, x, y ... in bins."""
    sizes = (scene.width, scene.height)
    return [
        min(max(int(value / sizes[index % 2] * BINS), 0), BINS - 1) for index, value in enumerate(coordinates)
    ]
