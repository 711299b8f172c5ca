"""A readback gives the host the decisions of a step, even if its copies arrive late."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import load_float32
from tiny import make_native
from torch import Tensor

from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis, TokenRules, generate_alone
from florence.engine.device.beams.search_state import SearchState
from florence.engine.device.capture.graphs import EagerCapturer
from florence.engine.device.memory import DeviceMemory, Download
from florence.engine.device.readback import StepReadback
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.engine.slots import Slot

RULES = TokenRules(start_id=2, eos_id=2, forced_bos_id=0, forced_eos_id=2)
ROOM, SLOTS = 12, 6


def request(seed: int, most: int = 10, least: int = 0) -> Request:
    """A request with pixels and a prompt made from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Request(pixels, (0, 10 + seed, 2), GenerationOptions(3, most, least, 3, True, 1.0))


def sequence(slot: int) -> SequenceState:
    """A sequence in this slot."""
    return SequenceState(request(0), slot=Slot(slot, (slot,)))


@pytest.mark.parametrize("seed", range(20))
def test_hypotheses_are_the_best_ones_and_of_equals_the_newest(seed: int) -> None:
    """The chosen hypotheses are the best, and the newest of equal ones, as in plain Python."""
    dice = random.Random(seed)
    state = SearchState(SLOTS, ROOM, RULES, torch.device("cpu"))
    state.finished_sequences.random_(0, 51_289)
    state.finished_logprobs.uniform_(-20, 0)
    expected = []
    asked = dice.sample(range(SLOTS), 4)
    for slot in asked:
        kept = dice.randint(1, 8)
        facts = [
            (dice.choice([-1.5, -0.25, -1e9, float("-inf")]), order)
            for order in dice.sample(range(99), state.finished_scores.shape[1])
        ]
        lengths = [dice.randint(1, ROOM) for _ in facts]
        state.finished_count[slot] = kept
        state.finished_scores[slot] = torch.tensor([score for score, _ in facts])
        state.finished_order[slot] = torch.tensor([order for _, order in facts])
        state.finished_lengths[slot] = torch.tensor(lengths)
        best = facts.index(max(facts[:kept]))
        length = lengths[best]
        expected.append(
            Hypothesis(
                state.finished_sequences[slot, best, : length + 1].tolist(),
                state.finished_logprobs[slot, best, 1 : length + 1].tolist(),
                facts[best][0],
            )
        )
    readback = StepReadback(state, DeviceMemory(), [])
    readback.fetch_hypotheses([sequence(slot) for slot in asked])
    found = readback.hypotheses()
    assert [each.slot.index for each, _ in found] == asked
    assert [hypothesis for _, hypothesis in found] == expected


def test_a_readback_holds_the_values_of_its_step() -> None:
    """A readback keeps the values of its step, although the next step and request overwrite the buffers."""
    state = SearchState(SLOTS, ROOM, RULES, torch.device("cpu"))
    state.finished_count.fill_(1)
    state.finished_lengths.fill_(3)
    state.finished_sequences.fill_(7)
    readback = StepReadback(state, DeviceMemory(), [])
    readback.fetch_hypotheses([sequence(1)])
    before = state.decided.tolist()
    state.decided.fill_(5)
    state.finished_sequences.zero_()
    assert list(readback.decided()) == before
    ((_, hypothesis),) = readback.hypotheses()
    assert hypothesis.token_ids == [7] * 4
    assert StepReadback(state, DeviceMemory(), []).hypotheses() == []


class DistantMemory(DeviceMemory):
    """Memory whose copies to the host arrive only when they are waited for.

    `waits`: for each wait, the step of its readback and the number of steps taken by then.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.waits: list[tuple[int, int]] = []

    def download(self, values: Tensor) -> Download:
        arriving, sent = torch.full_like(values, 99), values.clone()
        if values.dtype is torch.int64:  # a step's statuses and tokens; hypotheses are float64
            self.steps += 1
        step = self.steps

        def arrived() -> Tensor:
            if (step, self.steps) not in self.waits:
                self.waits.append((step, self.steps))
            return arriving.copy_(sent)

        return arrived


@torch.inference_mode()
def test_a_delayed_step_waits_once_for_the_previous_step_however_many_requests_end(
    tmp_path: Path,
) -> None:
    """A delayed step waits once for the previous step's readback, however many requests end.

    Answers equal those given alone, and all slots are freed, also for requests cancelled between end and
    answer.
    """
    model = load_float32(tmp_path, make_native(tmp_path).config.text_config.vocab_size)
    memory = DistantMemory()
    backend = Backend(memory=memory, capturer=EagerCapturer(), delayed_readback=True)
    runner = Runner(model, SLOTS, backend=backend, picture_tokens=5, decoder_room=20)
    lengths = [4, 4, 4, 7, 9, 9, 12, 5, 5, 3, 3, 16]
    coming = [request(seed, length, length) for seed, length in enumerate(lengths)]
    active: list[SequenceState] = []
    steps = answered = cancelled = 0
    while coming or active:
        count = min(len(coming), runner.slots.fits([3] * len(coming)))
        active += runner.encode(coming[:count]) if count else []
        coming = coming[count:]
        steps += 1
        outcomes = dict(runner.step(active))
        ended = [each for each in active if each.ended and each not in outcomes]
        if ended and steps % 3 == 0:  # its answer has not arrived yet
            runner.drop(ended[0])
            active.remove(ended[0])
            cancelled += 1
        active = [each for each in active if each not in outcomes]
        runner.slots.check([each.slot for each in active], runner.sizes.slots, runner.sizes.rows)
        for each, outcome in outcomes.items():
            answered += 1
            assert isinstance(outcome, Hypothesis)
            assert outcome.token_ids == generate_alone(model, each.request, runner.rules).token_ids
    assert answered + cancelled == len(lengths)
    assert cancelled > 0
    # Each step except the first waits once, for the previous step's readback.
    assert memory.waits == [(number, number + 1) for number in range(1, steps)]
