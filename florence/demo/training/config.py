"""The frozen plan of the demo checkpoint's training: sizes of the network, stages of the training.

Knows nothing about how either is done. Changing any number here changes the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from florence.demo.world.scenes import Limits

TOKEN_IDS: Final[Mapping[str, int]] = MappingProxyType(
    {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
)
"""Special tokens, with BART's ids."""

SHARES: Final[Mapping[str, float]] = MappingProxyType({
    "<CAPTION>": 4.0, "<DETAILED_CAPTION>": 1.6, "<MORE_DETAILED_CAPTION>": 1.2,
    "<CAPTION_TO_PHRASE_GROUNDING>": 2.5, "<OD>": 5.0, "<DENSE_REGION_CAPTION>": 2.0,
    "<REGION_PROPOSAL>": 1.5, "<OCR>": 1.2, "<OCR_WITH_REGION>": 1.2,
    "<REFERRING_EXPRESSION_SEGMENTATION>": 1.0, "<REGION_TO_SEGMENTATION>": 1.0,
    "<OPEN_VOCABULARY_DETECTION>": 1.2, "<REGION_TO_CATEGORY>": 1.0, "<REGION_TO_DESCRIPTION>": 1.0,
    "<REGION_TO_OCR>": 0.8,
})  # fmt: skip
"""Relative frequency of each task's questions."""

OUTLINE_SHARES: Final[Mapping[str, float]] = MappingProxyType({
    **SHARES,
    "<CAPTION>": 2.5, "<OD>": 3.0, "<CAPTION_TO_PHRASE_GROUNDING>": 3.0,
    "<REFERRING_EXPRESSION_SEGMENTATION>": 6.0, "<REGION_TO_SEGMENTATION>": 6.0,
    "<OPEN_VOCABULARY_DETECTION>": 3.0,
})  # fmt: skip
"""The same in the stages that learn outlines."""

ASKED_SHARES: Final[Mapping[str, float]] = MappingProxyType(
    {**OUTLINE_SHARES, "<REFERRING_EXPRESSION_SEGMENTATION>": 8.0, "<OPEN_VOCABULARY_DETECTION>": 6.0}
)
"""The same in the stages that learn tasks with a phrase as input."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the network. The picture's side is a multiple of 32; the window divides every stage's map."""

    side: int = 160
    dims: tuple[int, ...] = (32, 64, 128, 192)
    heads: tuple[int, ...] = (1, 2, 4, 6)
    depths: tuple[int, ...] = (1, 1, 2, 1)
    window: int = 5
    width: int = 192  # of the language model
    text_heads: int = 6
    encoder_layers: int = 2
    decoder_layers: int = 3


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """A stretch of training.

    `answers`: questions for each picture; 0 trains only the tower with a plain head. `blur`: width, in bins,
    of the Gaussian that replaces a location's target. `head_weight`: weight of the plain head's loss. `rate`:
    learning rate at the start and at the end, linear in between. `word_weight`: weight of tokens that are not
    locations. `rises`: whether the rate warms up from zero, as for a new optimizer. `shares`: relative
    frequency of each task.
    """

    name: str
    pictures: int
    limits: Limits
    answers: int
    blur: float
    head_weight: float
    rate: tuple[float, float]
    word_weight: float = 1.0
    rises: bool = False
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that determines the result: sizes, stages, seed."""

    sizes: Sizes = Sizes()
    stages: tuple[TrainingStage, ...] = ()
    seed: int = 1
    batch: int = 16  # pictures a step
    warm_up: int = 200  # steps of a learning rate's warm-up
    weight_decay: float = 0.02
    max_gradient: float = 1.0

    @property
    def steps(self) -> int:
        return sum(stage.pictures // self.batch for stage in self.stages)

    def stage_at(self, step: int) -> tuple[TrainingStage, float]:
        """The stage of a step, and the step's position in it, 0 to 1."""
        for stage in self.stages:
            length = stage.pictures // self.batch
            if step < length:
                return stage, step / length
            step -= length
        return self.stages[-1], 1.0

    def first_step(self, name: str) -> int:
        """The first step of the stage with this name. Raises `ValueError` if there is none."""
        names = [stage.name for stage in self.stages]
        return sum(stage.pictures // self.batch for stage in self.stages[: names.index(name)])

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        stage, through = self.stage_at(step)
        rate = stage.rate[0] + (stage.rate[1] - stage.rate[0]) * through
        steps_in = through * (stage.pictures // self.batch)
        return rate * min(1.0, (steps_in + 1) / self.warm_up) if stage.rises else rate


_MAIN: Final = 1e-3
_TO_FOUR: Final = Limits(things=(1, 4), word_share=0.55)
_TO_SIX: Final = Limits(things=(1, 6), word_share=0.55)
TRAINING: Final = TrainingConfig(
    stages=(
        TrainingStage("see", 32_000, Limits(things=(1, 4)), 0, 25.0, 1.0, (1.5e-3, 1.5e-3), rises=True),
        TrainingStage("speak", 10_000, Limits(things=(1, 2)), 4, 20.0, 0.5, (_MAIN, _MAIN), rises=True),
        TrainingStage("widen", 56_000, _TO_FOUR, 4, 12.0, 0.6, (_MAIN, 0.85 * _MAIN)),
        TrainingStage("settle", 38_400, _TO_SIX, 4, 6.0, 0.5, (0.85 * _MAIN, 0.0), 2.0),
        TrainingStage("sharpen", 8_000, _TO_SIX, 4, 1.5, 0.3, (2.5e-4, 0.0), 2.0),
        TrainingStage(
            "outline", 17_600, _TO_SIX, 6, 8.0, 0.6, (0.8 * _MAIN, 0.8 * _MAIN), 2.0, True, OUTLINE_SHARES
        ),
        TrainingStage(
            "round", 32_000, _TO_SIX, 6, 4.0, 0.5, (0.8 * _MAIN, 0.15 * _MAIN), 2.0, False, OUTLINE_SHARES
        ),
        TrainingStage("polish", 8_000, _TO_SIX, 6, 1.5, 0.3, (0.15 * _MAIN, 0.0), 2.0, False, OUTLINE_SHARES),
        TrainingStage("again", 16_000, _TO_SIX, 6, 2.5, 0.3, (0.5 * _MAIN, 0.0), 2.0, True, OUTLINE_SHARES),
        TrainingStage("places", 48_000, _TO_SIX, 6, 2.5, 0.4, (0.6 * _MAIN, 0.0), 2.0, True, OUTLINE_SHARES),
        TrainingStage("ask", 14_400, _TO_SIX, 6, 2.5, 0.3, (0.5 * _MAIN, 0.0), 2.0, True, ASKED_SHARES),
    )
)
