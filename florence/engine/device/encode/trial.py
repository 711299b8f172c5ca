"""Tries encodes beside decode steps and between them, on the device and in the captured shapes that will
serve: whether both ways compute the same numbers, and which is quicker.

A trial decodes synthetic requests, as many as a full engine has, and encodes others meanwhile, as the
engine's loop does. It leaves these requests in the runner's buffers. Knows a runner; knows nothing about
threads or queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florence.engine.device.beams.search_state import starts_of
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.encode_policy import MAX_REPEATS, TRIAL_S, Decision, Mix, Repeat, TrialTimes, decide
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.errors import EngineError

if TYPE_CHECKING:
    from florence.engine.device.runner import Runner

log = logging.getLogger(__name__)

PROMPT_TOKENS = 12
"""The length of a trial's prompts: that of a usual one."""

FIRST_TOKEN = 4
"""The first token id that a trial's prompts use; the ids before it are special."""


def try_encode_stream(runner: Runner, picture_size: tuple[int, int] | None, encode_batch: int) -> Decision:
    """Decide by an `EncodeTrial` where encodes run, and log it. The runner must have no requests.
    `picture_size` None: no trial, encodes run between steps."""
    started, budget_s = time.monotonic(), runner.backend.encode_budget_s
    if picture_size is None or budget_s is None:
        return Decision(False, "encodes are not captured")
    decision = EncodeTrial(runner, picture_size, encode_batch, budget_s).decide()
    where, seconds = "beside" if decision.runs_beside else "between", time.monotonic() - started
    log.info("encodes run %s decode steps: %s (tried in %.1f s)", where, decision.why, seconds)
    return decision


class EncodeTrial:
    """`picture_size`: height and width of pictures. `encode_batch`: requests of the largest encode.
    `encode_budget_s`: how long a step may take, in seconds. `clock`: in seconds."""

    def __init__(
        self,
        runner: Runner,
        picture_size: tuple[int, int],
        encode_batch: int,
        encode_budget_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner, self._budget_s, self._clock = runner, encode_budget_s, clock
        noise = np.random.default_rng(0).integers(0, 256, (encode_batch, *picture_size, 3), dtype=np.uint8)
        self._pixels: NDArray[np.uint8] = noise
        self._decoded: list[SequenceState] = []
        self._computed: list[Tensor] = []  # results of the latest repeat
        self._expected: list[Tensor] = []  # results of the first repeat

    def decide(self) -> Decision:
        """Run the trial, and decide. A failure decides against encodes beside steps. Raises `EngineError`
        where the device no longer works; it names the setting that skips the trial."""
        memory = self._runner.backend.memory
        unlock = memory.lock_pages(self._pixels.reshape(-1).data)  # as the readers' buffers are
        try:
            decision = self._decide()
        except Exception as error:
            log.debug("the trial failed here", exc_info=error)
            first_line, _, _ = str(error).partition("\n")
            decision = Decision(False, f"the trial failed: {first_line}")
        self._settle()  # the device may be reading these pages until then
        if unlock is not None:
            unlock()
        return decision

    def _settle(self) -> None:
        """Wait until the device is idle."""
        try:
            self._runner.backend.encode_stream.wait()
            self._runner.backend.memory.mark()()
        except Exception as error:
            raise EngineError(
                "the device failed while encodes were tried beside steps; "
                "FLORENCE_ENCODE_STREAM=off skips this trial"
            ) from error

    def _decide(self) -> Decision:
        runner, started = self._runner, self._clock()
        asked = self._requests()
        if (mix := self._mix(asked)) is None:
            return Decision(False, "too few requests fit into a step and an encode")
        one_picture = [asked[0]] * mix.encoded  # the picture is encoded once: these requests are only decoded
        while (left := mix.decoded - len(self._decoded)) > 0:
            self._decoded += runner.encode(one_picture[: runner.fits(one_picture[:left])])
        ways = EncodeStream(), runner.backend.encode_stream
        repeats: tuple[list[Repeat], list[Repeat]] = [], []
        for number in range(MAX_REPEATS):
            began = self._clock()
            for stream, taken in zip(ways, repeats, strict=True):
                taken.append(self._repeat(stream, asked[: mix.encoded], mix.steps))
                if not self._is_as_expected():
                    return Decision(False, "both ways do not compute the same numbers")
            now = self._clock()
            if number and now + (now - began) - started > TRIAL_S:
                break
        return decide(TrialTimes.of(repeats[0]), TrialTimes.of(repeats[1]), self._budget_s)

    def _mix(self, asked: Sequence[Request]) -> Mix | None:
        """The mix of a full engine, with as many requests encoded together as the encode budget allows; None
        if too small."""
        runner, sizes = self._runner, self._runner.sizes
        limit = min(len(asked), sizes.slots // 2)
        if not limit:
            return None
        started = self._clock()
        self._drop(runner.encode(asked[: runner.fits(asked[:limit])]))
        runner.backend.memory.mark()()
        seconds = (self._clock() - started) / runner.fits(asked[:limit])
        within = max(1, int(self._budget_s / seconds)) if seconds > 0 else limit
        return Mix.of(sizes.slots, runner.fits(asked[: min(limit, within)]), sizes.decoder_room)

    def _repeat(self, stream: EncodeStream, asked: Sequence[Request], steps: int) -> Repeat:
        """Time one encode and its steps; the decoded requests start again. As in the engine's loop, an encode
        beside steps advances by one part before each step, and one between steps is finished before the
        first."""
        runner, clock = self._runner, self._clock
        runner.encode_stream = stream
        runner.features.clear()
        self._restart()
        runner.backend.memory.mark()()
        joining, ends = [SequenceState(each) for each in asked], [clock()]
        with closing(runner.encode_parts(joining)) as parts:
            for _ in range(steps):
                for _ in parts:
                    if stream.beside:
                        break
                if runner.step(self._decoded):
                    raise EngineError("a request ended that was to go on")
                ends.append(clock())
            for wait in parts:
                if wait is not None:
                    wait()
        runner.backend.memory.mark()()
        whole_s = clock() - ends[0]
        self._computed = [*self._searches(), *self._written(joining)]
        self._drop(joining)
        return Repeat(whole_s, [end - start for start, end in pairwise(ends)])

    def _is_as_expected(self) -> bool:
        """Whether the results of the latest repeat equal the first one's, bit for bit."""
        self._expected = self._expected or self._computed
        return all(map(torch.equal, self._expected, self._computed))

    def _restart(self) -> None:
        """Start the searches of the decoded requests again."""
        for sequence in self._decoded:
            sequence.steps = 0
        starts = starts_of([(each.slot, each.request.options) for each in self._decoded])
        self._runner.state.start(self._runner.backend.memory.upload(starts))

    def _searches(self) -> list[Tensor]:
        """The tokens that steps have chosen, and their log-probabilities."""
        state, slots = self._runner.state, self._index(self._decoded)
        steps, beams = self._decoded[0].steps, len(self._decoded[0].slot.rows)
        chosen = [state.sequences, state.logprobs, state.beam_indirection]
        return [each[slots, :beams, : steps + 1] for each in chosen] + [state.totals[slots, :beams]]

    def _written(self, joined: Sequence[SequenceState]) -> list[Tensor]:
        """Checksums of what an encode has written: for each head and position the sum of the elements' bits,
        so that NaN counts too."""
        caches, slots = self._runner.caches, self._index(joined)
        length = joined[0].encoder_length
        return [
            layer[slots, :, :length].view(torch.int32).sum(-1)
            for buffer in (caches.cross_keys, caches.cross_values)
            for layer in buffer
        ]

    def _index(self, sequences: Sequence[SequenceState]) -> Tensor:
        slots = torch.tensor([each.slot.index for each in sequences])
        return self._runner.backend.memory.upload(slots)

    def _drop(self, sequences: Sequence[SequenceState]) -> None:
        for sequence in sequences:
            self._runner.drop(sequence)

    def _requests(self) -> list[Request]:
        """Requests with distinct pictures of noise, and answers as long as there is room for."""
        runner = self._runner
        room, vocab = runner.sizes, runner.model.config.text.vocab_size
        length = max(1, min(PROMPT_TOKENS, room.encoder_room - runner.picture_tokens))
        prompt = tuple(min(FIRST_TOKEN + each, vocab - 1) for each in range(length))
        beams = runner.model.config.generation.num_beams
        tokens = room.decoder_room
        options = GenerationOptions(beams, tokens, tokens, 3, False, 1.0)
        return [
            Request(pixels, prompt, options, digest=f"trial {number}".encode())
            for number, pixels in enumerate(self._pixels)
        ]
