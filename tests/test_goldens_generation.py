"""The token ids and scores of Microsoft's original code, for a request alone and for requests decoded
together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import Goldens, load_float32, options_of, remember_pictures, rules_of, sequence_of
from safetensors.torch import load_file, save_file

from florence.engine.device.beams.reference import Hypothesis, generate_alone
from florence.engine.device.runner import Runner
from florence.engine.request import Request
from florence.engine.sequence import SequenceState


def request_of(goldens: Goldens, case: dict[str, Any], row: int) -> Request:
    """The request of one row of a golden case."""
    return Request(goldens.pixels(case["images"][row]), tuple(case["input_ids"][row]), options_of(case))


def check(case: dict[str, Any], row: int, hypothesis: Hypothesis) -> None:
    """Check that ids are equal, and log-probabilities and the score within float32 rounding."""
    best = row * case["effective"]["num_return_sequences"]
    assert hypothesis.token_ids == sequence_of(case, row), case["id"]
    ours = np.array(hypothesis.token_logprobs)
    expected = np.array(case["transition_scores"][best][: len(ours)], dtype=float)
    assert ours == pytest.approx(expected, abs=2e-3), case["id"]
    if case.get("sequences_scores"):
        assert hypothesis.score == pytest.approx(float(case["sequences_scores"][best]), abs=1e-3), case["id"]


@torch.inference_mode()
@pytest.mark.slow
def test_every_case_alone_is_the_originals(goldens: Goldens) -> None:
    """Each golden case, decoded alone, gives the original's answer: greedy, 3 and 5 beams, length limits,
    penalties, with and without the n-gram rule and forced tokens."""
    cases = goldens.single_cases()
    assert len(cases) > 100
    for case, row in cases:
        check(case, row, generate_alone(goldens.model, request_of(goldens, case, row), rules_of(case)))


def finish(runner: Runner, sequences: Iterable[SequenceState]) -> dict[SequenceState, Hypothesis]:
    """Decode all sequences together; each leaves when it ends."""
    left, outcomes = list(sequences), {}
    while left:
        for sequence, outcome in runner.step(left):
            assert isinstance(outcome, Hypothesis)
            outcomes[sequence] = outcome
            left.remove(sequence)
    return outcomes


@pytest.mark.slow
def test_every_case_in_a_crowd_is_the_originals(goldens: Goldens) -> None:
    """A request's answer does not depend on the pictures, prompts, beams and lengths decoded beside it."""
    groups: dict[Any, list[tuple[dict[str, Any], int]]] = {}
    for case, row in goldens.single_cases():
        groups.setdefault(rules_of(case), []).append((case, row))
    seen = Runner(goldens.model, slots=1).features  # shared: the tower has tests of its own
    for rules, cases in groups.items():
        runner = Runner(goldens.model, slots=60, rules=rules)
        runner.features = seen
        for start in range(0, len(cases), 40):
            crowd = cases[start : start + 40]
            sequences = runner.encode([request_of(goldens, case, row) for case, row in crowd])
            outcomes = finish(runner, sequences)
            for (case, row), sequence in zip(crowd, sequences, strict=True):
                check(case, row, outcomes[sequence])
                at_limit = len(sequence_of(case, row)) == case["effective"]["max_length"]
                forced = case["effective"]["forced_eos_token_id"] is not None
                if forced:
                    assert runner.was_cut(outcomes[sequence], sequence.request) is at_limit


@torch.inference_mode()
def test_an_untied_head_is_used_as_it_is(goldens: Goldens, tmp_path: Path) -> None:
    """A fine-tune whose head differs from its embedding answers with its own head."""
    (tmp_path / "config.json").write_bytes((goldens.checkpoint / "config.json").read_bytes())
    tensors = load_file(goldens.checkpoint / "model.safetensors")
    tensors |= load_file(goldens.folder / "variants" / "untied" / "lm_head.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    model = remember_pictures(load_float32(tmp_path))
    assert not torch.equal(model.language.lm_head.weight, model.language.shared.weight)
    by_id = {case["id"]: case for case in goldens.values["generation"]}
    for untied in goldens.values["variants"]["untied"]["cases"]:
        case = by_id[untied["id"].removesuffix("-untied")]
        hypothesis = generate_alone(model, request_of(goldens, case, 0), rules_of(case))
        assert hypothesis.token_ids == sequence_of(case | untied, 0), untied["id"]
