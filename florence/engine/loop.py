"""The engine thread: owns the device, takes requests from a bounded queue, settles a future for each.

Continuous batching at the grain of one decode step: a request joins the others as soon as there is room,
leaves at its own end, and is freed at the next step when its future is cancelled or its deadline passes.
Knows requests and futures; what runs on the device is the runner's, who runs when is the scheduler's.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from florence.engine.request import EngineTimings, Generation, Request
from florence.engine.runner import Decoding, Runner
from florence.engine.scheduler import BatchLimits, Pace, Scheduler
from florence.errors import Closed, DeadlineExceeded, EngineError, FlorenceError, Overloaded, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What one request may ask of this model, in tokens."""

    max_new_tokens: int
    max_prompt_tokens: int


@dataclass(slots=True, eq=False)
class _Entry:
    """A request on its way; times are readings of `time.monotonic()`."""

    request: Request
    future: Future[Generation]
    arrived: float = field(default_factory=time.monotonic)
    taken: float = 0.0
    encoded: float = 0.0
    decoding: Decoding | None = None


class Engine:
    """Serves requests on one device from one thread of its own.

    `threads`: CPU threads of one operation, or None for torch's choice.
    """

    def __init__(
        self, runner: Runner, tokens: TokenLimits, batches: BatchLimits, *, threads: int | None = None
    ) -> None:
        self._runner = runner
        self._tokens = tokens
        self._threads = threads
        self._scheduler: Scheduler[_Entry] = Scheduler(batches)
        self._active: list[_Entry] = []
        self._changed = threading.Condition()
        self._closing = False
        self._aborting = False
        self._pace = Pace()
        self._thread = threading.Thread(target=self._serve, name="florence-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Requests in the queue; those being encoded or decoded are not counted."""
        return len(self._scheduler)

    def submit(self, request: Request) -> Future[Generation]:
        """Queue `request`. Cancelling the future frees its place at the next step.

        Raises `Overloaded` when the queue is full, `Closed` after `close`, `RequestError` for a prompt or an
        output longer than the model's position tables. The future raises `DeadlineExceeded`, `EngineError` or
        `Closed`.
        """
        self._check_lengths(request)
        entry = _Entry(request, Future())
        with self._changed:
            if not self.ready:
                raise _stopped()
            if self._scheduler.full:
                raise self.overloaded(len(self._scheduler))
            self._scheduler.add(entry)
            self._changed.notify()
        return entry.future

    def overloaded(self, waiting: int) -> Overloaded:
        """The error for one request too many, with the time that the waiting ones will take."""
        wait_s = max(1.0, self._pace.seconds_for(waiting))
        message = f"{waiting} requests are waiting, as many as may; come back in {wait_s:.0f} s"
        return Overloaded(message, retry_after_s=wait_s)

    def close(self, *, drain_s: float | None = None) -> None:
        """Take no more requests, finish those that came (for at most `drain_s` seconds), and end the thread.

        Requests that are not finished by then fail with `Closed`. Closing twice does nothing.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(drain_s)
        self._aborting = True
        self._thread.join()

    def _check_lengths(self, request: Request) -> None:
        prompt, most = len(request.prompt_ids), request.options.max_new_tokens
        if prompt > self._tokens.max_prompt_tokens:
            raise RequestError(
                f"the text has {prompt} tokens with the task's own words, at most "
                f"{self._tokens.max_prompt_tokens} fit beside the picture; shorten it"
            )
        if most > self._tokens.max_new_tokens:
            raise RequestError(
                f"max_new_tokens is {most}, this model has positions for {self._tokens.max_new_tokens}"
            )

    def _serve(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # holds for the calling thread's operations: this one
        try:
            while self._wait_for_work():
                self._drop_abandoned()
                with self._changed:
                    taken = self._scheduler.take(len(self._active))
                if taken:
                    self._encode(taken)
                if self._active:
                    self._step()
        finally:  # nobody is left waiting, even after an error that this thread does not know
            self._closing = self._aborting = True
            self._drop_abandoned()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the thread shall end."""
        with self._changed:
            if not self._active and not len(self._scheduler):
                self._pace.rest()
                self._changed.wait_for(lambda: len(self._scheduler) or self._closing)
            return bool(self._active or len(self._scheduler))

    def _drop_abandoned(self) -> None:
        """Free the places of those whose callers have gone, or whose time is up."""
        with self._changed:
            dropped = self._scheduler.remove(self._is_abandoned)
        dropped += [entry for entry in self._active if self._is_abandoned(entry)]
        self._active = [entry for entry in self._active if entry not in dropped]
        for entry in dropped:
            if self._aborting:
                _settle(entry.future, _stopped())
            else:
                late = "the request was not finished in the time given for it"
                _settle(entry.future, DeadlineExceeded(late))

    def _is_abandoned(self, entry: _Entry) -> bool:
        """Whether nobody waits for this answer any more."""
        deadline = entry.request.deadline
        late = deadline is not None and time.monotonic() > deadline
        return late or self._aborting or entry.future.cancelled()

    def _encode(self, taken: list[_Entry]) -> None:
        """Encode requests together, or one by one if that fails: a bad one must not take its neighbours
        along."""
        started = time.monotonic()
        try:
            decodings = self._runner.encode([entry.request for entry in taken])
        except Exception as error:
            if len(taken) > 1:
                for entry in taken:
                    self._encode([entry])
                return
            log.exception("a request failed while it was encoded")
            _settle(taken[0].future, _fault(error))
            return
        for entry, decoding in zip(taken, decodings, strict=True):
            entry.taken, entry.encoded, entry.decoding = started, time.monotonic(), decoding
        self._active += taken

    def _step(self) -> None:
        """One token for everyone who is being decoded; those who are done get their answers."""
        decodings = [entry.decoding for entry in self._active if entry.decoding]
        try:
            logits = self._runner.step(decodings)
        except Exception as error:
            log.exception("a decode step failed with %d requests", len(self._active))
            for entry in self._active:
                _settle(entry.future, _fault(error))
            self._active = []
            return
        self._scheduler.stepped()
        before = len(self._active)
        self._active = [
            entry
            for entry, decoding, scores in zip(self._active, decodings, logits, strict=True)
            if not self._advance(entry, decoding, scores)
        ]
        self._pace.finished(before - len(self._active))

    def _advance(self, entry: _Entry, decoding: Decoding, logits: torch.Tensor) -> bool:
        """Let one request's search choose its tokens; True when the request is finished."""
        try:
            decoding.search.take(logits)
        except FlorenceError as error:
            _settle(entry.future, error)
            return True
        if entry.request.on_token is not None:
            entry.request.on_token(decoding.search.tokens[0])
        if not decoding.search.done:
            return False
        _settle(entry.future, self._generation(entry, decoding))
        return True

    def _generation(self, entry: _Entry, decoding: Decoding) -> Generation:
        hypothesis = decoding.search.best()
        timings = EngineTimings(
            queue_s=entry.taken - entry.arrived,
            encode_s=entry.encoded - entry.taken,
            decode_s=time.monotonic() - entry.encoded,
        )
        return Generation(
            token_ids=tuple(hypothesis.token_ids),
            token_logprobs=tuple(hypothesis.token_logprobs),
            score=hypothesis.score,
            finish_reason="length" if self._runner.was_cut(hypothesis, entry.request) else "stop",
            picture_tokens=decoding.picture_tokens,
            timings=timings,
        )


def _stopped() -> Closed:
    return Closed("the engine stopped before the request was finished; send it to another instance")


def _fault(error: Exception) -> FlorenceError:
    """What the caller sees of an exception; the log has all of it."""
    if isinstance(error, FlorenceError):
        return error
    fault = EngineError(f"the request failed on the device: {type(error).__name__}")
    fault.__cause__ = error
    return fault


def _settle(future: Future[Generation], outcome: Generation | FlorenceError) -> None:
    """Put the outcome into the future, unless it was cancelled meanwhile."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, FlorenceError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
