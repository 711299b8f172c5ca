"""Estimated times of counted work on one card: steps, encodes, both concurrently, the nine tasks.

Knows costs and counts; prints nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

from closed_loop import TASKS

from florence.engine.config import EncodeStreamChoice, EngineConfig
from florence.engine.encode_policy import Decision, Mix, Repeat, TrialTimes, decide
from ledger.beside import slowdown
from ledger.costs import EAGER_LAUNCH_S, HOST_COPY, SMALL_KERNEL_S, Card
from ledger.counting import Ledger
from ledger.counts import ENCODES, POSITIONS, Counts, step_ends
from ledger.fakes import Encode
from ledger.rows import EXTRA_STEPS, closed_loop

SLOWDOWNS = [1 + number / 100 for number in range(101)]
"""The slowdowns that are tried to find the largest one with which a task reaches its aim."""


@dataclass(frozen=True, eq=False)
class Reckoner:
    """Estimated times of counted work on a card."""

    card: Card
    counts: Counts

    def step_s(self, requests: int, positions: float) -> float:
        """Estimated seconds of a step of `requests`, at this mean length."""
        return self._between_counted(self._step_seconds, requests, positions)

    def slowdown(self, requests: int, positions: float, *, new_pictures: bool = True) -> float:
        """Slowdown of a step and an encode that run concurrently."""
        return self._between_counted(self._slowdowns[new_pictures], requests, positions)

    @cached_property
    def _step_seconds(self) -> dict[tuple[int, float], float]:
        """Estimated seconds of each counted step."""
        return {load: ledger.seconds(self.card) for load, ledger in self.counts.steps.items()}

    @cached_property
    def _slowdowns(self) -> dict[bool, dict[tuple[int, float], float]]:
        """Slowdowns by whether an encode has new pictures, and by step."""
        tower, encoder = self.counts.encodes[ENCODES[-1]].graphs
        encodes = {True: Ledger([*tower.operations, *encoder.operations]), False: encoder}
        return {
            new: {load: slowdown(self.card, encode, step) for load, step in self.counts.steps.items()}
            for new, encode in encodes.items()
        }

    @cached_property
    def _ends(self) -> dict[int, tuple[int, int]]:
        """The fewest and the most requests of the captured shape, for each number of requests."""
        shapes = step_ends(self.counts.shape.slots)
        return {requests: ends for ends in shapes for requests in range(ends[0], ends[1] + 1)}

    def _between_counted(
        self, counted: Mapping[tuple[int, float], float], requests: int, positions: float
    ) -> float:
        """Interpolate between the steps that were counted in the same captured shape."""
        low, high = self._ends[requests]
        place = bisect_left(POSITIONS, positions, 1, len(POSITIONS) - 1)
        ends = POSITIONS[place - 1], POSITIONS[place]
        few, many = (
            on_line(positions, ends, (counted[number, ends[0]], counted[number, ends[1]]))
            for number in (low, high)
        )
        return on_line(requests, (low, high), (few, many))

    def decision(self, choice: EncodeStreamChoice) -> Decision:
        """The estimated result of the trial at the start; `choice` is the setting."""
        config = EngineConfig.for_device("cuda")
        mix = Mix.of(self.counts.shape.slots, config.max_encode_batch, config.max_new_tokens)
        if mix is None:
            raise ValueError("the engine is too small for a trial")
        positions = mix.steps / 2
        step_s, encode_s = self.step_s(mix.decoded, positions), self.encode_s(mix.encoded)[0]
        factor, steps_s = self.slowdown(mix.decoded, positions), mix.steps * step_s
        both_s = min(encode_s, steps_s)
        between = Repeat(encode_s + steps_s, [encode_s + step_s, *[step_s] * (mix.steps - 1)])
        beside = Repeat(encode_s + steps_s - (2 - factor) * both_s, [factor * step_s] * mix.steps)
        found = decide(TrialTimes.of([between]), TrialTimes.of([beside]), config.encode_budget_ms / 1000)
        forced = {"on": True, "off": False}.get(choice)
        return found if forced is None else replace(found, runs_beside=forced)

    def encode_s(self, requests: int, *, new_pictures: bool = True) -> tuple[float, float]:
        """Estimated seconds of an encode of `requests`, on the device and on the host, interpolated between
        counted sizes.

        Without new pictures, features come from the cache.
        """
        low, high = min(self.counts.encodes), max(self.counts.encodes)
        few, many = (self._encode_seconds[number, new_pictures] for number in (low, high))
        device, host = (on_line(requests, (low, high), ends) for ends in zip(few, many, strict=True))
        return device, host

    @cached_property
    def _encode_seconds(self) -> dict[tuple[int, bool], tuple[float, float]]:
        """Seconds on the device and on the host, by the pictures of an encode and whether they are new."""
        return {
            (number, new): (self.device_s(encode, new), self.host_s(encode, new))
            for number, encode in self.counts.encodes.items()
            for new in (True, False)
        }

    def device_s(self, encode: Encode, new_pictures: bool = True) -> float:
        """Seconds of an encode's graphs and of the kernels between them."""
        graphs = encode.graphs if new_pictures else encode.graphs[1:]
        return sum(graph.seconds(self.card) for graph in graphs) + encode.between * SMALL_KERNEL_S

    def host_s(self, encode: Encode, new_pictures: bool = True) -> float:
        """Seconds of the host for an encode: launches between graphs, and uploads.

        Meanwhile the device does earlier work, since copies have a stream of their own.
        """
        sent = encode.uploaded / HOST_COPY if new_pictures else 0.0
        return encode.between * EAGER_LAUNCH_S + sent

    def rows(self, concurrency: int, *, new_pictures: bool, beside: bool) -> dict[str, dict[str, float]]:
        """Rate and latencies of the nine tasks, with encodes beside steps or between them."""
        encode_s = partial(self.encode_s, new_pictures=new_pictures)
        slower = partial(self.slowdown, new_pictures=new_pictures) if beside else None
        return {
            task: asdict(closed_loop(concurrency, tokens, encode_s, self.step_s, slower))
            for task, tokens in TASKS.items()
        }

    def bearable(self, task: str, rate: float) -> float:
        """The largest slowdown with which concurrent encodes still give this rate of a task, at 30 requests;
        2 means one after the other."""

        def fails(factor: float) -> bool:
            row = closed_loop(30, TASKS[task], self.encode_s, self.step_s, lambda *_: factor)
            return row.rate < rate

        return SLOWDOWNS[max(0, bisect_left(SLOWDOWNS, True, key=fails) - 1)]

    def steps_of_an_answer(self, requests: int) -> dict[str, float]:
        """Milliseconds of each task's steps per answer, shared by `requests` requests that begin together."""
        return {
            task: sum(self.step_s(requests, step + 1) for step in range(tokens + EXTRA_STEPS))
            / requests
            * 1e3
            for task, tokens in TASKS.items()
        }


def on_line(x: float, ends: tuple[float, float], values: tuple[float, float]) -> float:
    """The value at `x` on the line through two points."""
    share = (x - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 1.0
    return values[0] + share * (values[1] - values[0])
