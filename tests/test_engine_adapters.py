"""Requests with different adapters and none in one batch: each gets the answer of its own merged model."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from beside import ROOM, Sides, make_sides, random_request, run_crowd

from florence.engine.adapters import AdapterSlots, EngineAdapter
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.capture.graphs import EagerCapturer
from florence.engine.device.runner import Runner
from florence.model.adapters.lowrank import LowRankKernels
from florence.model.attention import DenseAttention, KernelAttention
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.cuda import twins

SLOTS = 6
BACKENDS = ("plain", "kernels", "captured", "captured, row by row")
BY_ROWS = LowRankKernels(twins.shrink, twins.expand)
"""What the kernels for GPUs compute."""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return make_sides(tmp_path_factory.mktemp("sides"))


def runner_of(sides: Sides, kind: str, slots: int = 4, *, room: bool = True) -> Runner:
    dtype = torch.float32
    if kind == "kernels" and not available(dtype):
        pytest.skip("no kernels for this processor")
    fixed, kernels = kind.startswith("captured"), BY_ROWS if kind.endswith("row by row") else None
    packed = kind == "kernels"
    model = sides.beside(fixed=fixed, packed=packed, slots=slots, room=room, kernels=kernels)
    backend = Backend(DenseAttention())
    if kind == "kernels":
        backend = Backend(KernelAttention(CpuAttention(dtype, model.config.text.decoder_head_dim, 1)))
    elif fixed:
        backend = Backend(capturer=EagerCapturer(), delayed_readback=True, free_host_reads=False)
    runner = Runner(
        model, SLOTS, backend=backend, picture_tokens=5, picture_size=(64, 64), encoder_room=64,
        decoder_room=ROOM, feature_bytes=10_000,
    )  # fmt: skip
    runner.prepare()
    return runner


def names(dice: random.Random, sides: Sides, count: int) -> list[str | None]:
    return dice.choices([*sides.adapters, None], k=count)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_request_gets_the_answer_of_its_own_merged_model(sides: Sides, kind: str) -> None:
    """In random crowds: log-probabilities within 1e-4, and equal ids, or two answers of equal score."""
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
    assert len({tuple(each.token_ids) for each in wanted}) > 10  # they are not all the same answer


def test_an_answer_does_not_depend_on_the_adapters_of_others(sides: Sides) -> None:
    """With the project's kernels, to the last bit: the same request among requests with other adapters, and
    alone."""
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
    """Logits of a batch are near those of the merged model in float32, and far from the base's: one prompt
    with each adapter."""
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
    """Of the token after the start token, [rows, vocab]."""
    with model.with_adapters(torch.zeros(len(pixels), dtype=torch.int64) if index is None else index):
        prompts = torch.tensor([[0, 71, 412, 9, 2]]).expand(len(pixels), -1)
        encoded = model.encode(model.encode_images(pixels), prompts)
        cross_kv = model.language.decoder.cross_kv(encoded)
        states, _ = model.language.decode(torch.full((len(pixels), 1), 2), None, cross_kv)
        return model.language.logits(states[:, -1])


def test_pictures_are_remembered_by_adapter_only_where_it_changes_the_tower(sides: Sides) -> None:
    """Otherwise features are those of the base, and shared with it."""
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
    """Requests join in order as slots come free; an adapter that takes another's slot leaves nothing of
    it, and one that needs wider or other layers than there are gets them."""
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


def test_slots_are_never_taken_from_a_request() -> None:
    """Random comings and goings against a plain model: an adapter has one slot, a slot in use keeps its
    adapter, as many fit as `fits` says, and nothing is placed twice."""
    dice = random.Random(3)
    adapters = [EngineAdapter(str(number), {}, b"") for number in range(7)]
    slots, placed, in_use = AdapterSlots(3), dict[int, EngineAdapter](), list[tuple[int, EngineAdapter]]()
    for _ in range(2000):
        wanted = [dice.choice([None, *adapters]) for _ in range(dice.randint(1, 5))]
        count, held = slots.fits(wanted), {adapter for _, adapter in in_use}
        assert len({*held, *wanted[:count]} - {None}) <= 3
        if count < len(wanted):
            assert len({*held, *wanted[: count + 1]} - {None}) > 3
        for adapter in wanted[:count]:
            slot, new = slots.take(adapter)
            assert (slot == 0) == (adapter is None)
            if adapter is not None:
                assert all(other == slot for other, user in in_use if user is adapter)
                assert all(user is adapter for other, user in in_use if other == slot)
                assert new == (placed.get(slot) is not adapter)
                placed[slot] = adapter
                in_use.append((slot, adapter))
        for _ in range(dice.randint(0, len(in_use))):
            slot, _ = in_use.pop(dice.randrange(len(in_use)))
            slots.give_back(slot)
