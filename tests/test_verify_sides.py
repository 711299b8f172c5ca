"""The two sides of `florence verify` and the comparison: transformers' side gives the original's answers
on the goldens, and harmless differences are distinguished from faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from goldens import Goldens, imagenet_normalize, load_float32, options_of, rules_of, sequence_of
from layouts import DEMO
from safetensors.torch import load_file, save_file
from serving import ROOT
from tiny import make_native
from torch import Tensor
from transformers import GenerationConfig

from florence.engine.device.beams.reference import TokenRules, generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.errors import CheckpointError
from florence.images.preprocess import InputSize
from florence.readers.picture import LocalReader
from florence.verification.checks import pixel_line
from florence.verification.reading import read_model, read_processor, read_tower, timm_name
from florence.verification.theirs import GeneratedTokens, Transformers
from florence.verification.trials import (
    PLAIN,
    Part,
    Sample,
    Trial,
    bundled_pictures,
    make_trials,
    variants,
)
from florence.verification.verdict import TOLERANCE, Verdict, compare, largest_difference

OPTIONS = GenerationOptions(3, 20, 0, 3, True, 1.0)
SAMPLE = Sample("drawn", b"")
RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)


class Scripted(Transformers):
    """transformers' side with a test's prompt and pixels instead of a processor's."""

    def __init__(self, model: Any, prompt: Sequence[int], pixels: Tensor, rules: TokenRules = RULES) -> None:
        cells = pixels.shape[-1] // 32 * (pixels.shape[-2] // 32)
        super().__init__(model, SimpleNamespace(num_image_tokens=1 + cells), rules, 1, torch.device("cpu"))
        self.prompt, self.values = tuple(prompt), pixels

    def prompt_ids(self, trial: Trial) -> tuple[int, ...]:
        """The test's prompt."""
        return self.prompt

    def pixels(self, picture: Sample) -> Tensor:
        """The test's pixels."""
        return self.values


class FakeWitness:
    """A side with given log-probabilities, and an answer by the original's rule for each seed."""

    def __init__(self, logprobs: Sequence[float], *searched: tuple[int, ...]) -> None:
        self.values, self.answers = list(logprobs), searched

    def logprobs(self, trial: Trial, token_ids: Sequence[int]) -> list[float]:
        """The given log-probabilities."""
        return self.values

    def searched(self, trial: Trial, noise: float = 0.0, seed: int = 0) -> tuple[int, ...]:
        """The answer for this seed."""
        return self.answers[seed % len(self.answers)]


def trial_of(options: GenerationOptions = OPTIONS) -> Trial:
    """A trial with these options."""
    return Trial(Part.BEAMS, SAMPLE, PLAIN, options)


OURS, THEIRS = (
    GeneratedTokens((2, 0, 7, 2), (0.0, -1.0, -0.5)),
    GeneratedTokens((2, 0, 8, 2), (0.0, -1.1, -0.5)),
)
EARLY = replace(OPTIONS, early_stopping=False)


@pytest.mark.parametrize(
    ("options", "witness", "verdict"),
    [
        (EARLY, FakeWitness(OURS.token_logprobs, OURS.token_ids), Verdict.KNOWN),
        # Where transformers 4.46 and 5 have the same rule, this means a wrong search.
        (OPTIONS, FakeWitness(OURS.token_logprobs, OURS.token_ids), Verdict.FAULT),
        (EARLY, FakeWitness(OURS.token_logprobs, THEIRS.token_ids), Verdict.FAULT),
        (OPTIONS, FakeWitness(OURS.token_logprobs, THEIRS.token_ids, OURS.token_ids), Verdict.ROUNDING),
        # Other log-probabilities are a fault for any search result; so is a forbidden token.
        (EARLY, FakeWitness((0.0, -1.1, -0.5), OURS.token_ids), Verdict.FAULT),
        (EARLY, FakeWitness((0.0, -torch.inf, -0.5), OURS.token_ids), Verdict.FAULT),
    ],
)
def test_different_answers_are_judged(
    options: GenerationOptions, witness: FakeWitness, verdict: Verdict
) -> None:
    """A difference is known, due to rounding or a fault, by transformers' numbers for this package's
    answer."""
    assert compare(trial_of(options), OURS, THEIRS, witness).verdict is verdict


def test_what_is_no_number_is_a_fault() -> None:
    """NaN anywhere is a fault."""
    good = torch.zeros(1, 2)
    line = pixel_line([good, good], [good, torch.tensor([[0.0, torch.nan]])])
    assert line.ok is False
    assert largest_difference((0.0, -1.0), (torch.nan, -1.0)) == torch.inf


@pytest.mark.parametrize(("apart", "verdict"), [(0.5, Verdict.SAME), (2.0, Verdict.FAULT)])
def test_the_same_tokens_need_the_same_numbers(apart: float, verdict: Verdict) -> None:
    """The same tokens need the same log-probabilities, within the tolerance for another order of sums."""
    theirs = replace(OURS, token_logprobs=(0.0, -1.0 - apart * TOLERANCE, -0.5))
    assert compare(trial_of(), OURS, theirs, FakeWitness(())).verdict is verdict


def test_the_difference_of_transformers_5_is_known(tmp_path: Path) -> None:
    """Some searches that end early with a length penalty differ between transformers' `generate` and the
    original's rule; all are reported as known."""
    native = make_native(tmp_path, end=2.5)
    native.generation_config = GenerationConfig()
    model = load_float32(tmp_path, native.config.text_config.vocab_size)
    dice = np.random.default_rng(0)
    found = []
    for _ in range(8):
        pixels = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        prompt = (0, *dice.integers(4, 900, 3).tolist(), 2)
        witness = Scripted(native, prompt, model.vision.normalize(torch.from_numpy(pixels)[None]))
        for penalty in (0.5, 1.0, 2.0):
            trial = trial_of(GenerationOptions(2, 20, 0, 3, False, penalty))
            mine = generate_alone(model, Request(pixels, prompt, trial.options), RULES)
            ours = GeneratedTokens(tuple(mine.token_ids), tuple(mine.token_logprobs))
            found.append(compare(trial, ours, witness.answer(trial), witness).verdict)
    assert Verdict.KNOWN in found
    assert {*found} <= {Verdict.SAME, Verdict.KNOWN}


@pytest.mark.slow
def test_transformers_reads_microsofts_layout_as_the_original_did(goldens: Goldens, tmp_path: Path) -> None:
    """With tied and untied heads and a bias on the logits, `generate` gives the original's ids, and its
    log-probabilities of an answer are those of its generation."""
    untied = tmp_path / "untied"
    untied.mkdir()
    (untied / "config.json").write_bytes((goldens.checkpoint / "config.json").read_bytes())
    tensors = load_file(goldens.checkpoint / "model.safetensors")
    tensors |= load_file(goldens.folder / "variants" / "untied" / "lm_head.safetensors")
    save_file(tensors, untied / "model.safetensors")
    other_answers = goldens.values["variants"]["untied"]["cases"]
    changed = {case["id"].removesuffix("-untied"): case for case in other_answers}
    cases = [case for case in goldens.values["generation"] if case["id"] in changed][:2]
    assert cases
    for folder, expected in (
        (goldens.checkpoint, cases),
        (untied, [case | changed[case["id"]] for case in cases]),
    ):
        model = read_model(folder, 51289)
        for case in expected:
            pixels = torch.from_numpy(goldens.pixels(case["images"][0]))[None]
            values = goldens.model.vision.normalize(pixels)
            side = Scripted(model, case["input_ids"][0], values, rules_of(case))
            trial = trial_of(options_of(case))
            answer = side.answer(trial)
            assert list(answer.token_ids) == sequence_of(case, 0)
            again = side.logprobs(trial, answer.token_ids)
            np.testing.assert_allclose(again, answer.token_logprobs, atol=TOLERANCE)


def test_pictures_of_every_mode_are_the_same_to_both_sides(goldens: Goldens) -> None:
    """Alpha, grey, palette, 16 bits, CMYK and EXIF rotation give the pixels of transformers' processor,
    bit for bit."""
    processor = read_processor(goldens.checkpoint, goldens.checkpoint)
    side = Transformers(torch.nn.Identity(), processor, RULES, 1, torch.device("cpu"))
    reader, normalize = LocalReader(InputSize(768, 768, 3)), imagenet_normalize()
    files = sorted((goldens.folder / "inputs").iterdir())
    assert len(files) == 8
    for file in files:
        data = file.read_bytes()
        expected = normalize(torch.from_numpy(reader.read(data).pixels)[None])
        assert torch.equal(side.pixels(Sample(file.name, data)), expected), file.name


def test_a_tower_in_transformers_layout_finds_its_place_in_timm(tmp_path: Path) -> None:
    """Each tensor of the tower has a name in timm, and the features are the same."""
    native = make_native(tmp_path)
    tower = read_tower(tmp_path, native)
    assert {timm_name(name) for name in native.model.vision_tower.state_dict()} == {*tower.state_dict()}
    values = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = native.model.vision_tower(values).last_hidden_state
        torch.testing.assert_close(tower(values), expected, atol=1e-4, rtol=0)


def test_rows_that_stand_for_no_token_are_never_chosen(tmp_path: Path) -> None:
    """Head rows of transformers' layout for the picture and padding are never chosen."""
    native = make_native(tmp_path)
    model = read_model(tmp_path, 1090)
    states = torch.randn(4, 48)
    logits = model.lm_head(states)
    assert bool((logits[:, 1090:] == -torch.inf).all())
    torch.testing.assert_close(logits[:, :1090], native.lm_head(states)[:, :1090])


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module."])
def test_wrapped_names_are_read(tmp_path: Path, wrapper: str) -> None:
    """A prefix that a compiler or trainer puts before each name is removed."""
    native = make_native(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    save_file(wrapped, tmp_path / "model.safetensors", {"format": "pt"})
    found = read_model(tmp_path, 1100).state_dict()
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


def test_a_checkpoint_that_transformers_does_not_take_is_refused(tmp_path: Path) -> None:
    """The error names the tensors that transformers' model lacks."""
    make_native(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.more.weight"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.more\.weight"):
        read_model(tmp_path, 1100)


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0", "added_tokens": []}'])
def test_a_tokenizer_that_transformers_can_not_read_is_refused(tmp_path: Path, content: str) -> None:
    """Any error of transformers for a tokenizer is a CheckpointError."""
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="transformers can't read the tokenizer"):
        read_processor(tmp_path, tmp_path)


def test_all_tasks_are_asked_with_every_setting() -> None:
    """The trials cover fifteen tasks with one and three beams on each picture, and other settings; no two
    are alike."""
    pictures = bundled_pictures()
    own = {"no_repeat_ngram_size": 3, "early_stopping": True, "length_penalty": 1.0}
    made = make_trials(pictures, own, 40)
    usual = [trial for trial in made if trial.part is not Part.SEARCHES]
    assert len({(trial.task.token, trial.options.num_beams, trial.picture.name) for trial in usual}) == 60
    assert len({*map(str, made)}) == len(made)
    assert all(trial.options.min_new_tokens <= trial.options.max_new_tokens <= 40 for trial in made)


def test_the_package_brings_pictures_of_the_repository() -> None:
    """The bundled pictures equal those in data/, which an installation lacks."""
    found = bundled_pictures()
    assert len(found) == 2
    for picture in found:
        assert (ROOT / "data" / picture.name).read_bytes() == picture.data


def test_pictures_for_speeds_differ() -> None:
    """The pictures for speed measurements differ, so that no cached result is used."""
    assert len({picture.data for picture in variants(bundled_pictures(), 20)}) == 20


def test_a_wrong_call_ends_with_2(florence: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A wrong argument ends with status 2 before anything is loaded."""
    for wrong in (("--pictures", tmp_path), ("--device", "abacus"), ("--dtype", "float8")):
        status, out, error = florence("verify", "--model", "demo", *wrong)
        assert (status, out) == (2, "")
        assert str(wrong[1]) in error


def test_what_fails_on_the_way_ends_with_1(
    florence: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """A folder without a checkpoint, and a report that can't be written, end with status 1 and one line."""
    for wrong in (("--model", tmp_path), ("--model", "demo", "--json", tmp_path / "no" / "report.json")):
        status, out, error = florence("verify", *wrong)
        assert (status, out) == (1, "")
        assert str(tmp_path) in error
