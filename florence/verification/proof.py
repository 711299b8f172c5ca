"""Runs all of `florence verify`, in an order in which at most one side's model is in memory.

First this package: pictures, prompts and tower; then the engine in float32, and in the dtype that is served.
Then transformers on the same directory, and timm's tower. `checks` and `verdict` say what is compared and
which differences are faults.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import torch

from florence.checkpoint.hub import resolve_adapter, resolve_checkpoint
from florence.model.devices import QUANTIZED, pick_device, pick_dtype
from florence.runtime.florence2 import Florence2
from florence.verification import checks
from florence.verification.checks import Rates
from florence.verification.merging import check_peft
from florence.verification.ours import Deployment, Inputs, ask_alone, ask_at_once, read_inputs
from florence.verification.progress import Progress, duration
from florence.verification.reading import quiet_libraries, read_model, read_processor, read_tower
from florence.verification.report import Line, Report
from florence.verification.theirs import GeneratedTokens, Transformers
from florence.verification.trials import (
    BEAMS,
    MAX_NEW_TOKENS,
    MAX_NEW_TOKENS_QUICK,
    PLAIN,
    Part,
    Sample,
    Trial,
    make_trials,
    variants,
)
from florence.verification.verdict import Compared, Verdict, compare

FLOAT32: Final = "float32"
_TIMED, _TIMED_QUICK = 8, 4
"""Pictures with which each speed is measured, normally and with `quick`."""

Loader = Callable[[str], Florence2]
"""Loads the model in a dtype, given by name."""


@dataclass(frozen=True, slots=True)
class Ours:
    """This package's answers in float32, all at once (`together`) and one at a time (`alone`), and in the
    served dtype, all at once (None if that is float32)."""

    inputs: Inputs
    together: list[GeneratedTokens]
    alone: list[GeneratedTokens]
    served: list[GeneratedTokens] | None
    rates: dict[str, Rates]


@dataclass(frozen=True, slots=True)
class Proof:
    """The verification of `subject` on one device, in this package and in transformers.

    `load`: loads the model. `served`: the dtype that is compared with float32; may be float32 itself.
    `quick`: short answers.
    """

    subject: Deployment
    load: Loader
    pictures: Sequence[Sample]
    device: torch.device
    served: str
    quick: bool
    progress: Progress

    def run(self) -> Report:
        """Run everything. Raises `CheckpointError` where a side can't read the checkpoint."""
        started = self.progress.clock()
        quiet_libraries()
        subject = self.subject
        self.progress.say(f"reading {subject.label} on {self.device}")
        # First, so that refusals come before the long work.
        processor = read_processor(
            subject.checkpoint.tokenizer, subject.checkpoint.preprocessor, subject.side
        )
        inputs = read_inputs(subject, self.device, self.pictures)
        _free()
        self._read_theirs(inputs)
        _free()
        trials, ours = self._ask_ours(inputs)
        lines, compared = self._ask_theirs(processor, trials, ours)
        about = {
            "checkpoint": subject.label,
            "device": str(self.device),
            "dtype": self.served,
            "pictures": [picture.name for picture in self.pictures],
            "max_new_tokens": trials[0].options.max_new_tokens,
            "versions": [f"{name} {version(name)}" for name in ("torch", "transformers", "timm")],
        }
        return Report(about, lines, compared, self.progress.clock() - started)

    def _ask_ours(self, inputs: Inputs) -> tuple[list[Trial], Ours]:
        """This package's side; only the answers stay in memory."""
        over, rates = self.progress.over, dict[str, Rates]()
        served = None
        with self.load(FLOAT32) as model:
            info = model.info()
            max_new_tokens = min(
                MAX_NEW_TOKENS_QUICK if self.quick else MAX_NEW_TOKENS, info["limits"]["max_new_tokens"]
            )
            trials = make_trials(self.pictures, info["generation"], max_new_tokens)
            self._say_expected(len(trials), inputs)
            count = len(trials)
            all_at_once = ask_at_once(model, trials)
            together = list(over("florence, float32, all at once", all_at_once, count, together=True))
            one_by_one = (ask_alone(model, trial) for trial in trials)
            alone = list(over("florence, float32, one by one", one_by_one, count))
            rates[FLOAT32] = self._rates("florence", trials, partial(ask_at_once, model))
        _free()
        if self.served != FLOAT32:
            with self.load(self.served) as model:
                what, all_at_once = f"florence, {self.served}, all at once", ask_at_once(model, trials)
                served = list(over(what, all_at_once, count, together=True))
                rates[self.served] = self._rates("florence", trials, partial(ask_at_once, model))
            _free()
        return trials, Ours(inputs, together, alone, served, rates)

    def _ask_theirs(
        self, processor: Any, trials: Sequence[Trial], ours: Ours
    ) -> tuple[list[Line], list[Compared]]:
        """transformers' side, and the comparison."""
        inputs, over = ours.inputs, self.progress.over
        model, tower = self._read_theirs(inputs)
        theirs = Transformers(model, processor, inputs.rules, inputs.pad_id, self.device)
        lines = list(self._input_lines(trials, inputs, theirs, tower))
        del tower
        asked = zip(trials, ours.together, strict=True)
        answers = ((trial, given, theirs.answer(trial)) for trial, given in asked)
        found = list(over("transformers, float32, one by one", answers, len(trials)))
        compared = [compare(trial, mine, other, theirs) for trial, mine, other in found]
        lines += [
            checks.answer_line(part, [each for each in compared if each.trial.part is part]) for part in Part
        ]
        lines.append(checks.batch_line(ours.together, ours.alone, self._excused(compared, ours, theirs)))
        rates = {FLOAT32: self._rates("transformers", trials, theirs.generate)}
        if ours.served is not None:
            moved = None
            if self.served not in QUANTIZED:
                theirs.model.to(getattr(torch, self.served))
                moved = self._their_move(theirs, compared)
                rates[self.served] = self._rates("transformers", trials, theirs.generate)
            lines.append(checks.dtype_line(self.served, ours.together, ours.served, moved))
        for dtype, rate in ours.rates.items():
            about = f"{self._timed} pictures, {PLAIN.token}, {BEAMS[-1]} beams"
            lines += checks.rate_lines(dtype, rate, rates.get(dtype), about)
        return lines, compared

    def _read_theirs(self, inputs: Inputs) -> tuple[Any, torch.nn.Module]:
        """transformers' model, and timm's tower."""
        self.progress.say("reading the same files with transformers and timm")
        directory, adapter = self.subject.checkpoint.directory, self.subject.adapter
        model = read_model(directory, inputs.tokenizer.size, None if adapter is None else adapter.directory)
        return model, read_tower(directory, model, merged=adapter is not None)

    def _input_lines(
        self, trials: Sequence[Trial], inputs: Inputs, theirs: Transformers, tower: torch.nn.Module
    ) -> Iterator[Line]:
        """The lines about the language model's inputs."""
        each_task = list({trial.task: trial for trial in trials}.values())
        yield checks.prompt_line(
            [tuple(inputs.tokenizer.encode(trial.prompt)) for trial in each_task],
            [theirs.prompt_ids(trial) for trial in each_task],
        )
        pixels = [theirs.pixels(picture) for picture in self.pictures]
        yield checks.pixel_line(inputs.pixels, pixels)
        native = [theirs.features(picture) for picture in self.pictures]
        tower.to(self.device)
        with torch.inference_mode():
            timm = [tower(each.to(self.device)).cpu() for each in pixels]
        yield from checks.tower_lines(inputs.features, native, timm)

    def _excused(self, compared: Sequence[Compared], ours: Ours, theirs: Transformers) -> int:
        """How many answers differ between alone and together only because of rounding, by the same rule as
        for transformers."""
        differ = [
            compare(each.trial, alone, each.theirs, theirs).verdict
            for each, alone in zip(compared, ours.alone, strict=True)
            if each.ours.token_ids != alone.token_ids
        ]
        return sum(verdict is not Verdict.FAULT for verdict in differ)

    def _their_move(self, theirs: Transformers, compared: Sequence[Compared]) -> float:
        """The mean change of transformers' log-probabilities of its own answers by the served dtype."""
        greedy = [each for each in compared if each.trial.part is Part.GREEDY]
        what = f"transformers, {self.served}, its answers again"
        scored = (
            GeneratedTokens(each.theirs.token_ids, tuple(theirs.logprobs(each.trial, each.theirs.token_ids)))
            for each in greedy
        )
        return checks.mean_move(
            [each.theirs for each in greedy], list(self.progress.over(what, scored, len(greedy)))
        )

    def _rates(
        self, side: str, trials: Sequence[Trial], ask: Callable[[list[Trial]], Iterable[object]]
    ) -> Rates:
        """How quick a side is with captions of distinct pictures, so that it can't use a cache. `ask`:
        answers trials together."""
        self.progress.say(f"{side}, pictures a second")
        options = next(trial.options for trial in trials if trial.part is Part.BEAMS)
        pictures, count = variants(self.pictures, 1 + 2 * self._timed), self._timed
        first, *timed = (Trial(Part.BEAMS, picture, PLAIN, options) for picture in pictures)
        list(ask([first]))  # what a side prepares at its first answer is not timed
        rates = []
        for groups in ([[trial] for trial in timed[:count]], [timed[count:]]):
            started = self.progress.clock()
            for group in groups:
                list(ask(group))
            rates.append(count / (self.progress.clock() - started))
        return Rates(*rates)

    @property
    def _timed(self) -> int:
        """Pictures with which each speed is measured."""
        return _TIMED_QUICK if self.quick else _TIMED

    def _say_expected(self, trials: int, inputs: Inputs) -> None:
        sides = 2 if self.served == FLOAT32 else 3
        expected = duration(sides * (2 * trials + 20) * inputs.tower_s)
        self.progress.say(
            f"{trials} answers of each side; about {expected} in all, if the tower's "
            f"{inputs.tower_s:.2g} s a picture tell"
        )


def verify(
    name: str,
    load: Loader,
    pictures: Sequence[Sample],
    *,
    revision: str | None = None,
    base: str | None = None,
    adapter: str | None = None,
    input_size: int | None = None,
    device: str,
    dtype: str,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compare a checkpoint, named as for `Florence2.load`, between this package, transformers and timm; for
    transformers, an adapter is merged by PEFT.

    `load`: loads the model on `device` in a dtype, given by name. `dtype`: the one that is compared with
    float32, as for `Florence2.load`. `quick`: only the first picture, and short answers.

    Raises `CheckpointError` where a side can't find or read the checkpoint or the adapter, `SettingsError`
    for a device or dtype that is not available, and for an adapter without PEFT.
    """
    placed = pick_device(device)
    served = dtype if dtype in QUANTIZED else str(pick_dtype(dtype, placed)).removeprefix("torch.")
    asked = pictures[:1] if quick else pictures
    if adapter is not None:
        check_peft()
    merged = None if adapter is None else resolve_adapter(adapter)
    subject = Deployment(resolve_checkpoint(name, revision, base), merged, input_size)
    return Proof(subject, load, asked, placed, served, quick, progress or Progress()).run()


def _free() -> None:
    """Free a model's memory before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
