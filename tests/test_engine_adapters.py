"""Requests with different adapters, and without one, in one batch: each gets the answer of its own merged
model."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from beside import ROOM, Sides, make_sides, random_request, run_crowd

from florence.engine.adapters import AdapterSlots, EngineAdapter
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.capture.graphs import EagerCapturer
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.adapters.lowrank import LowRankKernels
from florence.model.attention import by_kernel
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.cuda import twins

SLOTS = 6
BACKENDS = ("plain", "kernels", "captured", "captured, row by row")
BY_ROWS = LowRankKernels(twins.shrink, twins.expand)
"""The computation of the GPU kernels."""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """A base and its adapters."""
    return make_sides(tmp_path_factory.mktemp("sides"))


def runner_of(sides: Sides, kind: str, slots: int = 4, *, room: bool = True) -> Runner:
    """A runner of this kind for the base with slots for adapters."""
    dtype = torch.float32
    if kind == "kernels" and not available(dtype):
        pytest.skip("no kernels for this processor")
    fixed, kernels = kind.startswith("captured"), BY_ROWS if kind.endswith("row by row") else None
    packed = kind == "kernels"
    model = sides.beside(fixed=fixed, packed=packed, slots=slots, room=room, kernels=kernels)
    backend = Backend()
    if kind == "kernels":
        backend = Backend(by_kernel(CpuAttention(dtype, model.config.text.decoder_head_dim, 1)))
    elif fixed:
        backend = Backend(capturer=EagerCapturer(), delayed_readback=True, free_host_reads=False)
    runner = Runner(
        model, SLOTS, backend=backend, picture_tokens=5, picture_size=(64, 64), encoder_room=64,
        decoder_room=ROOM, feature_bytes=10_000,
    )  # fmt: skip
    runner.prepare()
    return runner


def names(dice: random.Random, sides: Sides, count: int) -> list[str | None]:
    """Random names of adapters, or None."""
    return dice.choices([*sides.adapters, None], k=count)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_request_gets_the_answer_of_its_own_merged_model(sides: Sides, kind: str) -> None:
    """In random batches, log-probabilities agree to 1e-4 and ids are equal, or the two answers have equal
    scores."""
    dice = random.Random(kind)
    runner, chosen = runner_of(sides, kind), names(random.Random(kind), sides, 24)
    requests = [random_request(dice, None if name is None else sides.adapters[name]) for name in chosen]
    with torch.inference_mode():
        found = run_crowd(runner, requests, dice)
        wanted = [
            sides.alone(name, request, runner.rules) for name, request in zip(chosen, requests, strict=True)
        ]
    same = 0
    for mine, other in zip(found, wanted, strict=True):
        assert isinstance(mine, Hypothesis)
        if mine.token_ids == other.token_ids:
            torch.testing.assert_close(mine.token_logprobs, other.token_logprobs, atol=1e-4, rtol=0)
            same += 1
        else:
            assert abs(mine.score - other.score) < 1e-3
    assert same >= len(found) - 1
    assert len({tuple(each.token_ids) for each in wanted}) > 10  # the answers differ from each other


def test_an_answer_does_not_depend_on_the_adapters_of_others(sides: Sides) -> None:
    """With the project's kernels, a request gets bit for bit the same answer alone and among requests with
    other adapters."""
    dice = random.Random(5)
    runner = runner_of(sides, "kernels")
    asked = [random_request(dice, adapter) for adapter in [*sides.adapters.values(), None] for _ in range(2)]
    with torch.inference_mode():
        alone = [run_crowd(runner, [request], dice)[0] for request in asked]
        for _ in range(2):
            others = [random_request(dice, dice.choice([*sides.adapters.values(), None])) for _ in range(8)]
            crowd = [*enumerate([*asked, *others])]
            dice.shuffle(crowd)
            found = run_crowd(runner, [request for _, request in crowd], dice, together=1)
            places = {index: outcome for (index, _), outcome in zip(crowd, found, strict=True)}
            assert [places[index] for index in range(len(asked))] == alone


def test_in_bfloat16_every_adapter_is_in_effect(sides: Sides) -> None:
    """In bfloat16 a batch's logits for each adapter are close to those of its float32 merged model and far
    from the base's."""
    model = sides.beside(fixed=False, dtype=torch.bfloat16)
    adapters = list(sides.adapters)
    for slot, name in enumerate(adapters, 1):
        assert model.adapters is not None
        model.adapters.place(slot, sides.adapters[name].layers)
    index = torch.arange(len(adapters) + 1)
    pixels = torch.randint(
        0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        found = _first_logits(model, pixels.expand(len(index), -1, -1, -1), index)
        base = _first_logits(sides.model(), pixels)
        for row, name in enumerate([None, *adapters]):
            exact = _first_logits(sides.model(name), pixels)[0]
            error, change = (found[row] - exact).abs().mean(), (base[0] - exact).abs().mean()
            assert name is None or error < change / 2


def _first_logits(
    model: Florence2Model, pixels: torch.Tensor, index: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of the token after the start token, [rows, vocab]."""
    with model.with_adapters(torch.zeros(len(pixels), dtype=torch.int64) if index is None else index):
        prompts = torch.tensor([[0, 71, 412, 9, 2]]).expand(len(pixels), -1)
        encoded = model.encode(model.encode_images(pixels), prompts)
        cross_kv = model.language.decoder.cross_kv(encoded)
        states, _ = model.language.decode(torch.full((len(pixels), 1), 2), None, cross_kv)
        return model.language.logits(states[:, -1])


def test_pictures_are_remembered_by_adapter_only_where_it_changes_the_tower(sides: Sides) -> None:
    """An adapter that does not change the tower shares the base's cached features."""
    runner, dice = runner_of(sides, "plain"), random.Random(1)
    request = random_request(dice, None, 1)

    def encoded(name: str | None) -> int:
        before = runner.features.misses
        adapter = None if name is None else sides.adapters[name]
        run_crowd(runner, [replace(request, adapter=adapter)], dice)
        return runner.features.misses - before

    assert [encoded(name) for name in (None, "language", None, "tower", "language", "tower")] == [
        1, 0, 0, 1, 0, 0,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKENDS)
def test_a_batch_with_more_adapters_than_slots_waits(sides: Sides, kind: str) -> None:
    """Requests wait for free adapter slots in order.

    A reused slot keeps nothing of its former adapter, and an adapter with wider or other layers gets them.
    """
    dice = random.Random(8)
    runner = runner_of(sides, kind, slots=2, room=False)
    chosen = [*sides.adapters, None, *sides.adapters, *names(dice, sides, 4)]
    requests = [random_request(dice, None if name is None else sides.adapters[name], 2) for name in chosen]
    with torch.inference_mode():
        found = run_crowd(runner, requests, dice)
        runner.rest()
        again = run_crowd(runner, requests, dice)
        for name, request, *outcomes in zip(chosen, requests, found, again, strict=True):
            wanted = sides.alone(name, request, runner.rules)
            for outcome in outcomes:
                assert isinstance(outcome, Hypothesis)
                assert outcome.token_ids == wanted.token_ids


class Bank:
    """A fake bank that records which adapter is placed where, and can fail once."""

    slots = 3

    def __init__(self) -> None:
        self.placed, self.fails = dict[int, Any](), False

    def place(self, slot: int, layers: Any) -> bool:
        """Record the adapter in this slot, or fail once."""
        self.placed[slot] = None if self.fails else layers["layer"]
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return False


def a_sequence(adapter: EngineAdapter | None) -> SequenceState:
    """A sequence whose request has this adapter."""
    options = GenerationOptions(1, 4, 0, 0, True, 1.0)
    pixels = np.zeros((1, 1, 3), np.uint8)
    return SequenceState(Request(pixels, (0, 2), options, digest=b"-", adapter=adapter))


def test_slots_are_never_taken_from_a_request() -> None:
    """In random arrivals and departures, an adapter has one slot and a slot in use keeps its adapter.

    `fits` is exact, an adapter is placed once, and one that could not be placed is placed again.
    """
    dice, bank = random.Random(3), Bank()
    adapters = [EngineAdapter(str(number), {"layer": number}, b"") for number in range(7)]  # type: ignore[dict-item]
    slots, in_use = AdapterSlots(bank, lambda: None), list[SequenceState]()  # type: ignore[arg-type]
    failures = 0
    for _ in range(2000):
        wanted = [dice.choice([None, *adapters]) for _ in range(dice.randint(1, 5))]
        count, held = slots.fits(wanted), {each.request.adapter for each in in_use}
        assert len({*held, *wanted[:count]} - {None}) <= 3
        if count < len(wanted):
            assert len({*held, *wanted[: count + 1]} - {None}) > 3
        for adapter in wanted[:count]:
            sequence, before, bank.fails = a_sequence(adapter), dict(bank.placed), dice.random() < 0.1
            try:
                slots.enter([sequence], changed := [])
            except RuntimeError:
                assert changed == [str(adapter and adapter.name)]
                failures += 1
                continue
            bank.fails = False
            assert (sequence.adapter == 0) == (adapter is None)
            if adapter is not None:
                number = adapter.layers["layer"]
                assert bank.placed[sequence.adapter] == number
                assert (bank.placed == before) == (number in before.values())
                in_use.append(sequence)
            assert all(bank.placed[each.adapter] == each.request.adapter.layers["layer"] for each in in_use)  # type: ignore[union-attr]
        for _ in range(dice.randint(0, len(in_use))):
            slots.leave(in_use.pop(dice.randrange(len(in_use))))
    assert failures > 50
