"""The whole engine is exact: each answer equals the one given alone, whatever other requests come, end or are
encoded."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from goldens import load_float32
from shared_pool import SharedPool
from tiny import make_native
from waiting import PATIENCE_S, wait_until

from florence.engine.config import EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis, generate_alone
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.observer import EngineSnapshot, FinishReason, Observer
from florence.engine.request import Generation, GenerationOptions, Request
from florence.engine.sequence import Phase, SequenceState
from florence.errors import ClientLeft, DeadlineExceeded, FlorenceError
from florence.model.attention import by_kernel
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu.attention import CpuAttention
from florence.model.kernels.cpu.openmp import available

SLOTS, ROOM, LONGEST_PROMPT, PICTURE_TOKENS = 6, 24, 32, 5
PICTURES, REMEMBERED = 6, 3
"""The number of pictures, and of those that fit into the cache: some are encoded again."""
EOS_BIAS = 3.0
PHASES = (Phase.WAITING, Phase.ENCODING, Phase.DECODING)
ENDINGS = {FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.DEADLINE}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and the plain search's result for it alone."""

    request: Request
    alone: Hypothesis


@dataclass(eq=False, slots=True)
class Sent:
    """A sent request: its state in the engine, its streamed tokens and its outcomes."""

    ask: Ask
    sequence: SequenceState = field(init=False)
    tokens: list[int] = field(default_factory=list)
    outcomes: list[Generation | FlorenceError] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def take(self, outcome: Generation | FlorenceError) -> None:
        """Record an outcome; this is the request's `on_done`."""
        self.outcomes.append(outcome)
        self.done.set()


def random_request(dice: random.Random) -> Request:
    """A request with one of six pictures, and a random prompt, number of beams, length and options."""
    least = dice.choice([0, 0, 7])
    beams = dice.choice([1, 1, dice.randint(2, 8), dice.randint(2, 8), dice.randint(2, 8)])
    sampled = beams == 1 and dice.random() < 0.7
    options = GenerationOptions(
        num_beams=beams,
        max_new_tokens=dice.randint(max(1, least), ROOM),
        min_new_tokens=least,
        no_repeat_ngram_size=dice.choice([0, 2, 3, 3]),
        early_stopping=dice.choice([True, True, False, "never"]),
        length_penalty=dice.choice([0.0, 1.0, 1.0, 2.0, -1.0]),
        repetition_penalty=dice.choice([1.0, 1.0, 1.3, 0.8]),
        do_sample=sampled,
        temperature=dice.choice([0.7, 1.0, 2.0]),
        top_k=dice.choice([0, 20]),
        top_p=dice.choice([0.8, 1.0]),
        seed=dice.getrandbits(53) if sampled else None,
    )
    pixels = np.random.default_rng(dice.randrange(PICTURES)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    prompt = (0, *(dice.randint(3, 1000) for _ in range(dice.randint(1, LONGEST_PROMPT - 2))), 2)
    return Request(pixels, prompt, options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Florence2Model:
    """A tiny model whose sequences end at their limit or before it."""
    directory: Path = tmp_path_factory.mktemp("tiny")
    model = load_float32(directory, make_native(directory).config.text_config.vocab_size)
    model.language.final_logits_bias[0, model.config.text.eos_id] = EOS_BIAS
    model.language.has_logits_bias = True
    return model


@pytest.fixture(scope="module")
def asks(model: Florence2Model) -> list[Ask]:
    """Sixty random requests with their results alone."""
    rules, dice = Runner(model, 1).rules, random.Random(0)
    with torch.inference_mode():
        requests = [random_request(dice) for _ in range(60)]
        return [Ask(request, generate_alone(model, request, rules)) for request in requests]


@pytest.fixture(params=["kernel", "dense", "buckets"])
def runner(model: Florence2Model, request: pytest.FixtureRequest) -> Runner:
    """A runner for each layout of a step: the CPU's kernel, masked, or a GPU's fixed shapes with results one
    step late."""
    make = partial(Runner, model, SLOTS, decoder_room=ROOM)
    make = partial(make, picture_tokens=PICTURE_TOKENS, feature_bytes=REMEMBERED * picture_bytes(model))
    if request.param == "dense":
        return make()
    if request.param == "buckets":
        return make(backend=Backend(capturer=SharedPool(), delayed_readback=True, free_host_reads=False))
    if not available(torch.float32):
        pytest.skip("no kernel for this machine")
    return make(backend=Backend(by_kernel(CpuAttention(torch.float32, 12, 1))))


def picture_bytes(model: Florence2Model) -> int:
    """The bytes of one picture's features."""
    return PICTURE_TOKENS * model.config.text.d_model * model.language.shared.weight.element_size()


class Ticks:
    """A clock that advances by one at each reading, so budgets and deadlines do not depend on the machine's
    speed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@dataclass
class Crowd(Observer):
    """Clients that come and leave in the engine's own thread; a seed decides all events.

    `phases`: of requests when they were cancelled. `interleaved`: steps between two parts of an encode.
    """

    dice: random.Random
    coming: deque[Ask]
    clock: Ticks
    engine: Engine = field(init=False)
    sent: list[Sent] = field(default_factory=list)
    endings: Counter[FinishReason] = field(default_factory=Counter)
    phases: Counter[Phase] = field(default_factory=Counter)
    encodes: Counter[int] = field(default_factory=Counter)
    interleaved: int = 0

    def load(self, waiting: int, encoding: int, decoding: int) -> None:
        if self.sent and (waiting == encoding == decoding == 0 or self.dice.random() < 0.2):
            self.come()
        self._leave()

    def encoded(self, requests: int, pictures: int, seconds: float) -> None:
        self.encodes[requests] += 1
        self._leave()

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        self.interleaved += self.engine.snapshot().encoding > 0
        self._leave()

    def ended(self, ending: FinishReason, tokens: int = 0, queue_s: float = 0.0) -> None:
        self.endings[ending] += 1

    def come(self) -> None:
        """Send some more requests at once."""
        for _ in range(min(self.dice.choice([1, 2, 5]), len(self.coming))):
            within = self.dice.choice([None, None, None, 100, 400])
            deadline = within and self.clock.now + within
            self.sent.append(send(self.engine, self.coming.popleft(), deadline))

    @property
    def is_over(self) -> bool:
        """True if all requests were sent and have their outcomes."""
        return not self.coming and all(sent.sequence.phase is Phase.DONE for sent in self.sent)

    def _leave(self) -> None:
        """At times, cancel a request that has no outcome yet."""
        if self.dice.random() < 0.08:
            phase = self.dice.choice(PHASES)
            there = [sent.sequence for sent in self.sent if sent.sequence.phase is phase]
            there = [sequence for sequence in there if not sequence.cancelled]
            if there:
                self.dice.choice(there).cancel()
                self.phases[phase] += 1


def send(engine: Engine, ask: Ask, deadline: float | None = None) -> Sent:
    """Send a request to the engine."""
    sent = Sent(ask)
    request = replace(ask.request, deadline=deadline, on_token=sent.tokens.append)
    sent.sequence = engine.submit(request, sent.take)
    return sent


def sum_of(counters: Iterable[Counter[T]]) -> Counter[T]:
    """The sum of counters."""
    return sum(counters, Counter())


def sized(most: int, budget_s: float) -> EngineConfig:
    """A configuration with at most `most` pictures in an encode."""
    return EngineConfig(
        max_batch_size=SLOTS,
        max_encode_batch=most,
        encode_budget_ms=budget_s * 1000,
        max_new_tokens=ROOM,
        max_prompt_tokens=LONGEST_PROMPT,
    )


def start(
    runner: Runner, config: EngineConfig, observer: Observer | None = None, clock: Ticks | None = None
) -> Engine:
    """Start an engine."""
    return Engine(runner, config, observer=observer, clock=clock or time.monotonic)


def check(sent: Sent) -> FinishReason:
    """Check that the request has one outcome, and that an answer equals the one given alone.

    A search with one beam also streams each of its tokens once.
    """
    (answer,), alone = sent.outcomes, sent.ask.alone
    if isinstance(answer, ClientLeft):
        assert sent.sequence.cancelled
        return FinishReason.CANCELLED
    if not isinstance(answer, Generation):
        assert isinstance(answer, DeadlineExceeded)
        return FinishReason.DEADLINE
    assert answer.token_ids == tuple(alone.token_ids), sent.ask.request.options
    assert answer.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-3)
    assert answer.score == pytest.approx(alone.score, rel=1e-3, abs=1e-4)
    if sent.ask.request.options.num_beams == 1:
        assert sent.tokens == alone.token_ids[1:]
    return FinishReason(answer.finish_reason)


def check_empty(engine: Engine, runner: Runner) -> None:
    """Check that no request is left, and that all caches are finite."""
    runner.slots.check([], runner.sizes.slots, runner.sizes.rows)
    assert engine.snapshot() == EngineSnapshot(0, 0, 0)
    assert all(buffer.isfinite().all() for buffer in runner.caches.buffers)


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "most"), [(2, 1), (6, 4)])
def test_each_answer_is_the_one_given_alone(
    runner: Runner, asks: list[Ask], budget: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random arrivals, requests, cancellations and deadlines, each answer equals the one given alone.

    Requests are encoded one by one with a step after each part, or together with a step after every two
    parts.
    """
    clock, came, prepare = Ticks(), threading.Event(), runner.prepare

    def prepare_late(threads: int | None = None) -> None:
        assert came.wait(PATIENCE_S)  # from then on, all events are in this thread: the same in each run
        prepare(threads)

    monkeypatch.setattr(runner, "prepare", prepare_late)
    crowds = []
    for seed in range(2):
        crowd = Crowd(random.Random(seed), deque(random.Random(seed).sample(asks, len(asks))), clock)
        came.clear()
        crowd.engine = start(runner, sized(most, budget), crowd, clock)
        crowd.come()
        came.set()
        wait_until(lambda crowd=crowd: crowd.is_over)
        crowd.engine.close()
        check_empty(crowd.engine, runner)
        endings = Counter(check(sent) for sent in crowd.sent)
        assert endings == crowd.endings
        assert endings.total() == len(asks)
        crowds.append(crowd)
    # Every intended event has happened.
    assert sum_of(crowd.endings for crowd in crowds).keys() == ENDINGS
    assert sum_of(crowd.phases for crowd in crowds).keys() == set(PHASES)
    encodes = sum_of(crowd.encodes for crowd in crowds)
    assert (max(encodes) > 1) is (most > 1)
    assert sum(crowd.interleaved for crowd in crowds) > 20
    assert PICTURES < runner.features.misses < encodes.total()  # some came from the cache


@pytest.mark.slow
def test_clients_in_threads_of_their_own_get_what_they_would_get_alone(
    runner: Runner, asks: list[Ask]
) -> None:
    """Clients in separate threads, each sending the next request after an answer or a cancellation, get the
    answers given alone.

    The budget for encodes is nearly zero.
    """
    engine = start(runner, sized(2, 1e-4))

    def client(number: int) -> list[Sent]:
        dice, sent = random.Random(number), []
        for ask in dice.sample(asks, 12):
            sent.append(send(engine, ask))
            if dice.random() < 0.2:
                sent[-1].sequence.cancel()
            else:
                assert sent[-1].done.wait(PATIENCE_S)
        return sent

    with ThreadPoolExecutor(8) as clients:
        all_sent = [sent for found in clients.map(client, range(8)) for sent in found]
    engine.close()
    check_empty(engine, runner)
    assert Counter(check(sent) for sent in all_sent).keys() == ENDINGS - {FinishReason.DEADLINE}
