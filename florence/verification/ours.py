"""Runs trials on this package through its public interface, all at once or one at a time; and collects the
outputs of its tokenizer, preprocessing and tower.

Knows nothing about transformers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from florence.answers.answer import Answer
from florence.checkpoint.config import read_config
from florence.checkpoint.hub import Checkpoint
from florence.checkpoint.preprocessing import read_preprocessing
from florence.checkpoint.tokenizer import Tokenizer, load_tokenizer
from florence.checkpoint.weights import load_model
from florence.engine.device.backend import products_for
from florence.engine.device.beams.reference import TokenRules
from florence.images.preprocess import InputSize
from florence.model.vision import Normalize
from florence.readers.picture import LocalReader
from florence.runtime.florence2 import Florence2
from florence.types.options import GenerationParameters
from florence.verification.theirs import GeneratedTokens
from florence.verification.trials import Sample, Trial


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is verified: a checkpoint, an adapter that is merged into it (None for none), and `side`, pixels
    of the square that pictures are resized to (None: as the preprocessor says)."""

    checkpoint: Checkpoint
    adapter: Checkpoint | None = None
    side: int | None = None

    @property
    def label(self) -> str:
        """The name in the report."""
        return " + ".join(each.label for each in (self.checkpoint, self.adapter) if each is not None)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The language model's inputs as this package makes them. `pixels`: normalised, float32 [1, 3, height,
    width]; `features`: of the tower, float32 [1, dim, height, width]; one of each for each picture, on the
    CPU. `rules`, `pad_id`: the special tokens. `tower_s`: seconds of the tower for one picture."""

    tokenizer: Tokenizer
    pixels: list[Tensor]
    features: list[Tensor]
    rules: TokenRules
    pad_id: int
    tower_s: float


@torch.inference_mode()
def read_inputs(subject: Deployment, device: torch.device, pictures: Sequence[Sample]) -> Inputs:
    """Compute the inputs with this package's loader, in float32; the model is freed afterwards. Raises
    `CheckpointError`."""
    checkpoint, adapter = subject.checkpoint, subject.adapter
    config = read_config(checkpoint.directory)
    preprocessing = read_preprocessing(checkpoint.preprocessor, subject.side)
    tokenizer = load_tokenizer(checkpoint.tokenizer, config.text.vocab_size)
    normalize = Normalize(preprocessing.mean, preprocessing.std, preprocessing.rescale)
    merged = None if adapter is None else (adapter.label, adapter.directory)
    directory = checkpoint.directory
    model = load_model(directory, config, normalize, tokenizer.size, device, torch.float32, merged)
    products_for(device, torch.float32).pack(model)
    reader = LocalReader(InputSize(preprocessing.height, preprocessing.width, preprocessing.resample))
    pixels = [torch.from_numpy(reader.read(picture.data).pixels)[None].to(device) for picture in pictures]
    values = [model.vision.normalize(each) for each in pixels]
    started = time.perf_counter()
    features = [model.vision.tower(each).cpu() for each in values]
    tower_s = (time.perf_counter() - started) / len(pictures)
    pixels = [each.cpu() for each in values]
    return Inputs(tokenizer, pixels, features, TokenRules.of(config), config.text.pad_id, tower_s)


def ask_at_once(model: Florence2, trials: Sequence[Trial]) -> Iterator[GeneratedTokens]:
    """Run all trials together, as many at a time as the queue takes. Answers are in the order of the
    trials."""
    room = model.info()["limits"]["max_queue"]
    for first in range(0, len(trials), room):
        futures = [
            model.submit(each.picture.data, each.task, each.text, parameters=_parameters(each))
            for each in trials[first : first + room]
        ]
        for future in futures:
            yield _given(future.result())


def ask_alone(model: Florence2, trial: Trial) -> GeneratedTokens:
    """Run one trial alone."""
    return next(ask_at_once(model, [trial]))


def _parameters(trial: Trial) -> GenerationParameters:
    return GenerationParameters(**asdict(trial.options))


def _given(answer: Answer) -> GeneratedTokens:
    return GeneratedTokens(tuple(answer.token_ids), tuple(answer.token_logprobs))
