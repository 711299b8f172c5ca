"""Trains the demo checkpoint: `python -m florence.demo.train --state DIR`; goes on from a state in DIR.

`--start CHECKPOINT --stage NAME` takes a checkpoint's weights and goes through the plan from that stage on.
Knows nothing about serving. `training.config.TRAINING` and the start decide a run: the same batches come in
the same order, stopped and resumed or not.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_model
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader

from florence.checkpoint.files import TOKENIZER, WEIGHTS
from florence.demo.training.batches import Batch, Batches
from florence.demo.training.config import TRAINING, TrainingConfig
from florence.demo.training.files import load_state, save_state, write_checkpoint
from florence.demo.training.losses import answer_loss, blur_table, head_loss, picture_features
from florence.demo.training.network import PlainHead, make_config, make_network
from florence.demo.world.tokenizer import make_tokenizer
from florence.model.devices import keep_freed_memory, pick_dtype
from florence.types.regions import BINS

STATE, CHECKPOINT = "state.pt", "checkpoint"
"""Names in the directory of a run: the state to resume from, and the checkpoint's directory."""
_SAVE_EVERY: Final = 500  # steps
_LOG_EVERY: Final = 50


@dataclass(frozen=True, slots=True)
class Start:
    """A checkpoint to begin from, and the stage of the plan to begin with."""

    checkpoint: Path
    stage: str


class Trainer:
    """The network, its optimizer and the current step."""

    def __init__(self, plan: TrainingConfig, device: torch.device, tokenizer: Tokenizer) -> None:
        self.plan, self.device, self.tokenizer = plan, device, tokenizer
        self.first_location: int = self.tokenizer.encode("<loc_0>").ids[1]  # after <s>
        config = make_config(plan.sizes, self.tokenizer.get_vocab_size())
        self.model = make_network(config, self.first_location, plan.seed).train()
        nn.Module.to(self.model, device)
        # At these sizes, plain attention in bfloat16 on a CPU takes two thirds of the time of the fused one.
        self.model.set_attn_implementation("eager")
        self.head = PlainHead(plan.sizes.width).to(device)
        self.modules = nn.ModuleDict({"model": self.model, "head": self.head})
        self.parameters = list(self.modules.parameters())
        matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": plan.weight_decay},
             {"params": vectors, "weight_decay": 0.0}],
            lr=0.0, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self.step = 0
        self._precision = pick_dtype("auto", device)
        self._blur_table = cache(partial(blur_table, device=device))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on one batch; returns the losses."""
        stage, _ = self.plan.stage_at(self.step)
        batch = batch.to(self.device)
        blur = self._blur_table(stage.blur)
        mixed = self._precision is not torch.float32
        with torch.autocast(self.device.type, dtype=self._precision, enabled=mixed):
            features = picture_features(self.model, batch.pixels)
            parts = [
                answer_loss(self.model, features, group, self.first_location, blur) for group in batch.groups
            ]
        locations = self.model.lm_head.weight[self.first_location : self.first_location + BINS]
        plain = head_loss(self.head, features, batch, locations, blur)
        loss = stage.head_weight * plain
        answers = plain.new_zeros(())
        if parts:
            words, places, counts = zip(*parts, strict=True)
            answers = (stage.word_weight * sum(words) + sum(places)) / sum(counts)
        loss = loss + answers
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.max_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"head": float(plain.detach()), "answers": float(answers.detach())}

    def save(self, directory: Path) -> None:
        """Write the state to resume from, and the current checkpoint."""
        directory.mkdir(parents=True, exist_ok=True)
        write_checkpoint(directory / CHECKPOINT, self.model, self.tokenizer, self.plan.sizes.side)
        save_state(directory / STATE, self.modules, self.optimizer, self.step)

    @classmethod
    def resume(
        cls, plan: TrainingConfig, device: torch.device, directory: Path, start: Start | None = None
    ) -> Trainer:
        """A trainer at the state in the directory; without one at the given start, or at the beginning.

        A start only has the network's weights: the optimizer and the plain head are initialised.
        """
        state = directory / STATE
        if state.is_file():
            trainer = cls(plan, device, Tokenizer.from_file(str(directory / CHECKPOINT / TOKENIZER)))
            trainer.step = load_state(state, trainer.modules, trainer.optimizer)
        elif start is not None:
            trainer = cls(plan, device, Tokenizer.from_file(str(start.checkpoint / TOKENIZER)))
            load_model(trainer.model, start.checkpoint / WEIGHTS)
            trainer.step = plan.first_step(start.stage)
        else:
            trainer = cls(plan, device, make_tokenizer())
        return trainer


def batches_from(trainer: Trainer, workers: int) -> Iterator[Batch]:
    """The batches of the remaining steps, prefetched by other processes."""

    def init_worker(worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and ends its workers
        torch.set_num_threads(1)
        os.nice(10)

    return iter(DataLoader(
        Batches(trainer.plan, trainer.tokenizer), batch_size=None,
        sampler=range(trainer.step, trainer.plan.steps),
        num_workers=workers, prefetch_factor=16, worker_init_fn=init_worker,
    ))  # fmt: skip


def train(
    plan: TrainingConfig,
    directory: Path,
    device: torch.device,
    start: Start | None = None,
    minutes: float = math.inf,
    workers: int = 1,
) -> None:
    """Train until the plan ends, the minutes are over, or SIGTERM or Ctrl-C arrives. Saves regularly."""
    asked_to_stop: list[int] = []
    former = {
        number: signal.signal(number, lambda number, frame: asked_to_stop.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    trainer = Trainer.resume(plan, device, directory, start)
    began, last, first_step = time.monotonic(), time.monotonic(), trainer.step
    means: dict[str, float] = {}
    for batch in batches_from(trainer, workers):
        losses = trainer.train_step(batch)
        means = {name: 0.98 * means.get(name, value) + 0.02 * value for name, value in losses.items()}
        if not math.isfinite(sum(losses.values())):
            raise ArithmeticError(f"the loss is not finite at step {trainer.step}: {losses}")
        if trainer.step % _LOG_EVERY == 0:
            pace = (time.monotonic() - last) / _LOG_EVERY / plan.batch * 1e3
            last = time.monotonic()
            _log(trainer, means, pace, (last - began) / 60)
        if trainer.step % _SAVE_EVERY == 0:
            trainer.save(directory)
        if asked_to_stop or time.monotonic() - began > minutes * 60:
            break
    trainer.save(directory)
    for number, handler in former.items():
        signal.signal(number, handler)
    steps = trainer.step - first_step
    print(f"stopped at step {trainer.step} of {plan.steps}, {steps} steps in this run", flush=True)


def _log(trainer: Trainer, means: dict[str, float], pace: float, minutes: float) -> None:
    stage, _ = trainer.plan.stage_at(trainer.step - 1)
    losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
    print(f"{stage.name} step {trainer.step}/{trainer.plan.steps} {losses} "
          f"rate {trainer.plan.rate_at(trainer.step - 1):.1e} {pace:.0f} ms/picture {minutes:.1f} min",
          flush=True)  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True, help="directory of the state and the checkpoint")
    parser.add_argument("--start", type=Path, help="directory of a checkpoint to begin from, with --stage")
    stages = [stage.name for stage in TRAINING.stages]
    parser.add_argument("--stage", choices=stages, help="stage of the plan to begin with, from --start")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; then resume")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; a GPU needs several")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if (arguments.start is None) != (arguments.stage is None):
        parser.error("--start and --stage go together: a checkpoint, and the stage to begin with from it")
    if arguments.start is not None and (arguments.state / STATE).exists():
        state = arguments.state
        parser.error(f"{state} holds a state to go on from; leave out --start, or name another folder")
    start = None if arguments.start is None else Start(arguments.start, arguments.stage)
    keep_freed_memory()
    device = torch.device(arguments.device)
    train(TRAINING, arguments.state, device, start, arguments.minutes, arguments.workers)


if __name__ == "__main__":
    main()
