"""The engine thread: owns the device, takes requests from a bounded queue, settles a future for each.

Continuous batching at the grain of one decode step: a request joins the others as soon as there is room,
leaves at its own end, and is freed at the next step when its future is cancelled or its deadline passes.
Knows requests and futures; what runs on the device is the runner's, who runs when is the scheduler's.

A fault of one request fails it alone. A step that fails fails all that were in it, since what the device
holds can't be trusted any more; the engine is not ready while it builds its buffers anew, and goes on. So it
does when request after request can't be encoded. When building fails, or nothing succeeds any more, it is
*broken*: it fails everybody, takes nobody, and says so to whoever supervises it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import torch

from florence.engine.admission import check_tokens, refusal
from florence.engine.config import EngineConfig
from florence.engine.device.reference import Hypothesis
from florence.engine.device.runner import Runner
from florence.engine.entry import Encoding, Entry, fault_of, stopped
from florence.engine.observer import FinishReason, Observer
from florence.engine.pending import Pending
from florence.engine.request import Generation, Request
from florence.engine.scheduler import Pace, Scheduler
from florence.engine.sequence import SequenceState
from florence.errors import Closed, DeadlineExceeded, FlorenceError

log = logging.getLogger(__name__)

MOST_FAULTS = 3
"""Encodes of one request that may fail one after another before the engine is built anew; and how often it
may have to be, no step between succeeding, before it gives up."""


class Engine:
    """Serves requests on one device from one thread of its own.

    `on_broken` is called once, on the engine's thread, when it gives up.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        *,
        observer: Observer | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        self._runner = runner
        self._config = config
        self._observer = observer or Observer()
        self._on_broken = on_broken
        self._scheduler: Scheduler[Entry] = Scheduler(config)
        self._encoding: Encoding | None = None
        self._alone: deque[Entry] = deque()  # to be encoded one by one: an encode of them together failed
        self._active: list[Entry] = []
        self._changed = threading.Condition()
        self._pending = Pending(time.monotonic)  # all that came and have no outcome yet
        self._closing = self._aborting = self._recovering = False
        self._error: Exception | None = None  # what broke the engine
        self._faults = self._encode_faults = 0
        self._pace = Pace()
        self._thread = threading.Thread(target=self._serve, name="florence-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken and decoded."""
        return self.alive and not (self._closing or self._recovering)

    @property
    def alive(self) -> bool:
        """Whether the engine works, or will again; False once it is broken or closed."""
        return self._thread.is_alive() and self._error is None

    @property
    def max_queue(self) -> int:
        """Requests that may wait."""
        return self._config.max_queue

    @property
    def waiting(self) -> int:
        """Requests in the queue; those being encoded or decoded are not counted."""
        return len(self._scheduler)

    def submit(self, request: Request) -> Future[Generation]:
        """Queue `request`. Cancelling the future frees its place at the next step.

        Raises `Overloaded` when the queue is full or the wait would be longer than `max_latency_ms`, `Closed`
        after `close` and while the engine is not ready, `RequestError` for a prompt or an output longer than
        this engine has room for. The future raises `DeadlineExceeded`, `EngineError` or `Closed`.
        """
        check_tokens(self._config, len(request.prompt_ids), request.options.max_new_tokens)
        entry = Entry(request, Future())
        with self._changed:
            if self.alive and self._recovering:
                raise Closed("the engine restarts; come back")
            if not self.ready:
                raise stopped(self._error)
            self.check_load(len(self._scheduler))
            self._scheduler.add(entry)
            self._pending.add(entry)
            self._changed.notify()
        return entry.future

    def check_load(self, waiting: int) -> None:
        """Raise `Overloaded`, with the time to come back, if one more request behind `waiting` others is one
        too many."""
        # While few come, answers are far apart for other reasons, and only encoding says what one costs.
        wait_s = max(self._pace.seconds_for(waiting), waiting * self._scheduler.encode_s)
        refused = refusal(self._config, waiting, wait_s)
        if refused is not None:
            self._observer.ended(FinishReason.REFUSED)
            raise refused

    def close(self, *, drain_s: float | None = None) -> None:
        """Take no more requests, finish those that came (for at most `drain_s` seconds), and end the thread.

        Requests that are not finished by then fail with `Closed`, at the end of the step in progress. Closing
        twice does nothing. `on_broken` may close too, and waits for nothing: the thread ends by itself.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(drain_s)
        self._aborting = True
        self._thread.join()

    def _serve(self) -> None:
        try:
            if self._config.threads:
                torch.set_num_threads(self._config.threads)  # of this thread only
            self._runner.prepare()
            while self._wait_for_work():
                self._drop_abandoned()
                self._encode()
                if self._active:
                    self._step()
        except Exception as error:
            log.critical("the engine is broken", exc_info=error)
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody is left waiting, whatever ended the thread; if it was an error, the supervisor is told."""
        with self._changed:
            self._closing = self._aborting = True
            left = list(self._pending)
        try:
            self._fail(left, stopped(self._error), FinishReason.CLOSED)
            self._observer.load(0, 0, 0)
        finally:
            if self._error is not None and self._on_broken is not None:
                self._on_broken()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the thread shall end."""
        with self._changed:
            busy = self._active or self._encoding or self._alone
            if not busy and not len(self._scheduler):
                self._tell_load()
                self._pace.rest()
                self._changed.wait_for(lambda: len(self._scheduler) or self._closing)
            self._tell_load()
            return bool(busy or len(self._scheduler))

    def _tell_load(self) -> None:
        encoding = (*self._encoding.entries, *self._alone) if self._encoding else self._alone
        count = sum(entry in self._pending for entry in encoding)
        self._observer.load(len(self._scheduler), count, len(self._active))

    def _drop_abandoned(self) -> None:
        """Free the places of those whose callers have gone, or whose time is up; of everybody when it is
        time to end. What is being encoded goes on while one of its requests is left."""
        with self._changed:
            gone = set(self._pending) if self._aborting else self._pending.gone()
            if not gone:
                return
            self._scheduler.remove(gone.__contains__)
        self._let_go(gone)
        self._active = [entry for entry in self._active if entry in self._pending]
        if self._encoding and not any(entry in self._pending for entry in self._encoding.entries):
            self._encoding.parts.close()
            self._encoding = None

    def _let_go(self, entries: Iterable[Entry]) -> None:
        """Free the places of abandoned requests and say why."""
        for entry in entries:
            if entry.sequence is not None:
                self._runner.drop(entry.sequence)
            if self._aborting:
                self._fail([entry], stopped(), FinishReason.CLOSED)
            else:
                late = DeadlineExceeded("the request was not finished in the time given for it")
                self._fail([entry], late, FinishReason.DEADLINE)

    def _encode(self) -> None:
        """Encode those who wait, for as long as those who are being decoded can spare."""
        started = time.monotonic()
        while time.monotonic() - started < self._scheduler.budget_s(len(self._active)):
            if self._encoding is None:
                taken = self._take()
                if not taken:
                    return
                self._encoding = self._begin(taken)
            self._tell_load()
            self._encode_part(self._encoding)
            self._drop_abandoned()

    def _take(self) -> list[Entry]:
        """Those to encode next."""
        while self._alone:
            if (entry := self._alone.popleft()) in self._pending:
                return [entry]
        with self._changed:
            return self._scheduler.take(len(self._active), self._fits)

    def _fits(self, entries: Iterable[Entry]) -> int:
        return self._runner.slots.fits(entry.request.options.num_beams for entry in entries)

    def _begin(self, entries: list[Entry]) -> Encoding:
        started = time.monotonic()
        for entry in entries:
            entry.taken = entry.taken or started
        parts = self._runner.encode_parts([entry.request for entry in entries])
        return Encoding(entries, parts, self._runner.features.misses)

    def _encode_part(self, encoding: Encoding) -> None:
        """One part of an encode."""
        started = time.monotonic()
        try:
            next(encoding.parts)
        except StopIteration as end:
            self._encoding = None
            encoding.seconds += time.monotonic() - started
            self._join(encoding, end.value)
        except Exception as error:  # noqa: BLE001  (logged, and told to its callers)
            self._encoding = None
            self._encode_failed(encoding.entries, error)
        else:
            encoding.seconds += time.monotonic() - started

    def _encode_failed(self, entries: list[Entry], error: Exception) -> None:
        """Requests that failed together are encoded one by one: a bad one must not take its neighbours
        along."""
        if len(entries) > 1:
            self._alone.extend(entries)
            return
        log.error("a request failed while it was encoded", exc_info=error)
        self._fail(entries, fault_of(error), FinishReason.FAULT)
        self._encode_faults += 1
        if self._encode_faults == MOST_FAULTS:
            self._recover(error)

    def _join(self, encoding: Encoding, sequences: Sequence[SequenceState]) -> None:
        """Those who are encoded are decoded from now on, but for those who have gone meanwhile."""
        for entry, sequence in zip(encoding.entries, sequences, strict=True):
            if entry not in self._pending:
                self._runner.drop(sequence)
                continue
            entry.encoded, entry.sequence = time.monotonic(), sequence
            self._active.append(entry)
        self._encode_faults = 0
        pictures = self._runner.features.misses - encoding.pictures_before
        self._scheduler.encoded(len(sequences), encoding.seconds)
        self._observer.encoded(len(sequences), pictures, encoding.seconds)

    def _step(self) -> None:
        """One token for everyone who is being decoded; those who are done get their answers."""
        sequences = [entry.sequence for entry in self._active if entry.sequence]
        moved = [sequence for sequence in sequences if not sequence.ended]
        started = time.monotonic()
        try:
            outcomes = dict(self._runner.step(sequences))
        except Exception as error:
            log.error("a decode step failed with %d requests", len(self._active), exc_info=error)
            self._recover(error)
            return
        if moved:  # those that have ended only wait for their answers
            rows = sum(len(sequence.slot.rows) for sequence in moved)
            self._observer.stepped(len(moved), rows, time.monotonic() - started)
        self._scheduler.stepped()
        self._faults = 0
        ended = [entry for entry in self._active if entry.sequence in outcomes]
        self._active = [entry for entry in self._active if entry not in ended]
        for entry, sequence in ((entry, entry.sequence) for entry in ended if entry.sequence):
            self._finish(entry, sequence, outcomes[sequence])
        self._pace.finished(len(ended))

    def _finish(self, entry: Entry, sequence: SequenceState, outcome: Hypothesis | FlorenceError) -> None:
        if isinstance(outcome, FlorenceError):
            self._fail([entry], outcome, FinishReason.FAULT)
            return
        generation = Generation(
            token_ids=tuple(outcome.token_ids),
            token_logprobs=tuple(outcome.token_logprobs),
            score=outcome.score,
            finish_reason="length" if self._runner.was_cut(outcome, entry.request) else "stop",
            picture_tokens=sequence.picture_tokens,
            timings=entry.timings(),
        )
        taken = self._settle(entry, generation)
        ending = FinishReason(generation.finish_reason) if taken else FinishReason.CANCELLED
        self._observer.ended(ending, len(generation.token_logprobs), entry.queue_s)

    def _fail(self, entries: Iterable[Entry], error: FlorenceError, ending: FinishReason) -> None:
        """Those of them who have no outcome yet; all are told before anything else is done."""
        told = [(entry, self._settle(entry, error)) for entry in entries if entry in self._pending]
        for entry, waited in told:
            self._observer.ended(ending if waited else FinishReason.CANCELLED, queue_s=entry.queue_s)

    def _settle(self, entry: Entry, outcome: Generation | FlorenceError) -> bool:
        self._pending.remove(entry)
        return entry.settle(outcome)

    def _recover(self, error: Exception) -> None:
        """Fail those in flight, and start again with new buffers. Raises what the device does, or the error
        itself once it came too often: the engine is broken then."""
        self._recovering = True
        in_flight, self._active = self._active, []
        if self._encoding is not None:
            self._encoding.parts.close()
            in_flight += self._encoding.entries
            self._encoding = None
        self._fail(in_flight, fault_of(error), FinishReason.FAULT)
        self._faults += 1
        self._encode_faults = 0
        if self._faults == MOST_FAULTS:
            raise error
        self._runner.reset()
        self._recovering = False
