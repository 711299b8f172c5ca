"""The engine's thread: it owns the device, takes requests from a bounded queue, and gives each one outcome.

Continuous batching (Orca, OSDI 2022) at the grain of one decode step: a request joins the batch as soon as
there is room, leaves at its own end, and is dropped at the next step when it is cancelled or expires. The
runner decides how the device works, the scheduler which requests run when. Imports no torch.

A fault of one request fails it alone. If a step fails, so do all requests in it, since the device's buffers
can't be trusted any more; the engine is not ready while it makes new ones, and then goes on. It does the same
when several encodes of single requests fail in a row. When making new buffers fails too, or this happens
repeatedly without a successful step in between, the engine is *broken*: it fails all requests, takes no more,
and calls `on_broken`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import astuple

from florence.engine.config import EngineConfig
from florence.engine.faults import fault_of, stopped
from florence.engine.observer import EngineSnapshot, FinishReason, Observer
from florence.engine.pending import Pending
from florence.engine.request import Request
from florence.engine.runner import StepRunner
from florence.engine.scheduler import Scheduler, check_tokens
from florence.engine.sequence import EncodeBatch, OnDone, Phase, SequenceState
from florence.errors import Closed, DeadlineExceeded, FlorenceError

log = logging.getLogger(__name__)

MAX_FAULTS = 3
"""How many encodes of single requests fail in a row until the buffers are made anew, and how many faults
without a successful step in between break the engine."""


class Engine:
    """Serves requests on one device from one thread of its own.

    `on_broken` is called once, on the engine's thread, when it gives up. `clock`: seconds, for deadlines and
    budgets.
    """

    def __init__(
        self,
        runner: StepRunner,
        config: EngineConfig,
        *,
        observer: Observer | None = None,
        on_broken: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner, self._config, self._clock = runner, config, clock
        self._observer, self._on_broken = observer or Observer(), on_broken
        self._scheduler: Scheduler[SequenceState] = Scheduler(config, clock)
        self._encoding: EncodeBatch | None = None
        self._retries: deque[SequenceState] = deque()  # to be encoded one by one after a failed encode
        self._decoding: list[SequenceState] = []
        self._changed = threading.Condition()
        self._pending = Pending(clock, self._observer)
        self._closing = self._aborting = self._recovering = False
        self._error: Exception | None = None  # what broke the engine
        self._faults = self._encode_faults = 0
        self._thread = threading.Thread(target=self._serve, name="florence-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the engine accepts and decodes requests."""
        return self.alive and not (self._closing or self._recovering)

    @property
    def alive(self) -> bool:
        """Whether the engine works, or will again; False once it is broken or closed."""
        return self._thread.is_alive() and self._error is None

    def snapshot(self) -> EngineSnapshot:
        """How many requests are in the engine now. Thread-safe."""
        batch = self._encoding
        encoding = [*(batch.sequences if batch else ()), *self._retries]
        return EngineSnapshot(
            waiting=len(self._scheduler),
            encoding=sum(sequence.phase is Phase.ENCODING for sequence in encoding),
            decoding=len(self._decoding),
        )

    def submit(
        self, request: Request, on_done: OnDone, on_taken: Callable[[], object] | None = None
    ) -> SequenceState:
        """Queue `request`; its `cancel` frees its slot at the next step.

        `on_done` is called with a `Generation`, or with a `DeadlineExceeded`, `EngineError` or `Closed`, or
        with `ClientLeft` after a cancel; possibly before `submit` returns. `on_taken` is called on the
        engine's thread when the request leaves the queue to be encoded; it must be quick and must not raise.

        Raises `Overloaded` when the queue is full or the wait would exceed `max_latency_ms`, `Closed` after
        `close` and while the engine is not ready, `RequestError` for a prompt or an output that is too long.
        """
        check_tokens(self._config, len(request.prompt_ids), request.options.max_new_tokens)
        sequence = SequenceState(request, on_done=on_done, arrived_s=self._clock())
        if on_taken is not None:
            sequence.on_taken = on_taken
        with self._changed:
            if self.alive and self._recovering:
                raise Closed("the engine is restarting; try again")
            if not self.ready:
                raise stopped(self._error)
            self.check_load(len(self._scheduler))
            self._scheduler.add(sequence)
            self._pending.add(sequence)
            self._changed.notify()
        return sequence

    def check_load(self, waiting: int) -> None:
        """Raise `Overloaded`, with the time after which to retry, if one more request may not wait behind
        `waiting` others."""
        refused = self._scheduler.refusal(waiting)
        if refused is not None:
            self._observer.ended(FinishReason.REFUSED)
            raise refused

    def wait_s(self, waiting: int) -> float:
        """Estimated seconds until `waiting` requests are done; 0 while nothing is known."""
        return self._scheduler.wait_s(waiting)

    def close(self, *, drain_s: float | None = None) -> None:
        """Take no more requests, finish those in the engine (for at most `drain_s` seconds; None: all of
        them), and end the thread.

        Requests that are not finished by then fail with `Closed`, at the end of the step in progress. Closing
        twice does nothing. If `on_broken` calls this, it does not wait: the thread ends by itself.
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
            self._runner.prepare(self._config.threads)
            while self._wait_for_work():
                self._drop_unwanted()
                self._encode()
                if self._decoding:
                    self._step()
                elif self._encoding is None and not self._retries:
                    self._runner.rest()
        except Exception as error:
            log.critical("the engine is broken", exc_info=error)
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        """Fail the remaining requests; if an error ended the thread, call `on_broken`."""
        with self._changed:
            self._closing = self._aborting = True
            left = list(self._pending)
        try:
            self._pending.fail(left, stopped(self._error), FinishReason.CLOSED)
            self._observer.load(0, 0, 0)
        finally:
            if self._error is not None and self._on_broken is not None:
                self._on_broken()

    def _wait_for_work(self) -> bool:
        """Sleep until there is work; False when the thread is to end."""
        with self._changed:
            busy = self._decoding or self._encoding or self._retries
            if not busy and not len(self._scheduler):
                self._report_load()
                self._scheduler.throughput.rest()
                self._changed.wait_for(lambda: len(self._scheduler) or self._closing)
            self._report_load()
            return bool(busy or len(self._scheduler))

    def _report_load(self) -> None:
        self._observer.load(*astuple(self.snapshot()))

    def _drop_unwanted(self) -> None:
        """End requests that were cancelled or expired; end all when the engine aborts. An encode goes on
        while one of its requests is left."""
        with self._changed:
            unwanted = set(self._pending) if self._aborting else self._pending.cancelled_or_expired()
            if not unwanted:
                return
            self._scheduler.remove(unwanted)
        for sequence in unwanted:
            if sequence.phase is Phase.DECODING:
                self._runner.drop(sequence)
            if self._aborting:
                self._pending.fail([sequence], stopped(), FinishReason.CLOSED)
            else:
                late = DeadlineExceeded.of_request()
                self._pending.fail([sequence], late, FinishReason.DEADLINE)
        self._decoding = [sequence for sequence in self._decoding if sequence.phase is Phase.DECODING]
        if self._encoding and self._encoding.is_done:
            self._encoding.parts.close()
            self._encoding = None

    def _encode(self) -> None:
        """Encode waiting requests within the encode budget: at least one part, and more while they are
        expected to end in time. Where the device encodes beside steps, launch one part."""
        started, parts = self._clock(), 0
        while self._scheduler.has_time(self._clock() - started, len(self._decoding), parts):
            if self._encoding is None:
                if not (taken := self._take()):
                    return
                self._encoding = self._begin(taken)
            self._report_load()
            self._encode_part(self._encoding)
            self._drop_unwanted()
            if self._decoding and self._encoding is not None and self._encoding.wait is not None:
                return
            parts = 1 + self._runner.chunks_ahead  # the next part, and those that the device has not finished

    def _take(self) -> list[SequenceState]:
        """The requests to encode next."""
        while self._retries:
            if (sequence := self._retries.popleft()).phase is not Phase.DONE:
                return [sequence]
        with self._changed:
            return self._scheduler.take(
                len(self._decoding),
                lambda waiting: self._runner.fits(each.request for each in waiting),
            )

    def _begin(self, sequences: list[SequenceState]) -> EncodeBatch:
        started = self._clock()
        for sequence in sequences:
            if sequence.phase is Phase.WAITING:
                sequence.phase, sequence.taken_s = Phase.ENCODING, started
                sequence.on_taken()
        return EncodeBatch(sequences, self._runner.encode_parts(sequences))

    def _encode_part(self, batch: EncodeBatch) -> None:
        """One part of an encode."""
        started = batch.seconds
        try:
            pictures = batch.advance(self._clock, wait=not self._decoding)
        except Exception as error:  # noqa: BLE001  (logged, and the outcome of its requests)
            self._encoding = None
            self._encode_failed(batch.sequences, error)
            return
        if batch.wait is None:
            self._scheduler.part_ended(batch.seconds - started)
        if pictures is not None:
            self._encoding = None
            self._join(batch, pictures)

    def _encode_failed(self, sequences: list[SequenceState], error: Exception) -> None:
        """Requests that failed together are encoded again one by one: a bad one must fail alone."""
        if len(sequences) > 1:
            self._retries.extend(sequences)
            return
        log.error("a request failed while it was encoded", exc_info=error)
        self._pending.fail(sequences, fault_of(error), FinishReason.FAULT)
        self._encode_faults += 1
        if self._encode_faults == MAX_FAULTS:
            self._recover(error)

    def _join(self, batch: EncodeBatch, pictures: int) -> None:
        """Move encoded requests into the decode batch, except those that ended meanwhile."""
        for sequence in batch.sequences:
            if sequence.phase is Phase.DONE:
                self._runner.drop(sequence)
            else:
                sequence.phase, sequence.encoded_s = Phase.DECODING, self._clock()
                self._decoding.append(sequence)
        self._encode_faults = 0
        self._scheduler.encoded(len(batch.sequences), batch.seconds)
        self._observer.encoded(len(batch.sequences), pictures, batch.seconds)

    def _step(self) -> None:
        """One decode step for the whole batch; finished requests get their outcomes."""
        moved = [sequence for sequence in self._decoding if not sequence.ended]
        started = self._clock()
        try:
            outcomes = self._runner.step(self._decoding)
        except Exception as error:
            log.error("a decode step failed with %d requests", len(self._decoding), exc_info=error)
            self._recover(error)
            return
        if moved:  # the rest only wait for their answers to be copied
            rows = sum(len(sequence.slot.rows) for sequence in moved)
            self._observer.stepped(len(moved), rows, self._clock() - started)
        self._scheduler.stepped()
        self._faults = 0
        for sequence, outcome in outcomes:
            if isinstance(outcome, FlorenceError):
                self._pending.fail([sequence], outcome, FinishReason.FAULT)
            else:
                was_cut = self._runner.was_cut(outcome, sequence.request)
                self._pending.finish(sequence, outcome, "length" if was_cut else "stop")
        if outcomes:
            self._decoding = [sequence for sequence in self._decoding if sequence.phase is Phase.DECODING]
        self._scheduler.throughput.finished(len(outcomes))

    def _recover(self, error: Exception) -> None:
        """Fail all requests on the device, and start again with new buffers. Raises what the device raises,
        or `error` itself at the `MAX_FAULTS`th fault in a row: then the engine is broken."""
        self._recovering = True
        in_flight, self._decoding = self._decoding, []
        if self._encoding is not None:
            self._encoding.parts.close()
            in_flight += self._encoding.sequences
            self._encoding = None
        self._pending.fail(in_flight, fault_of(error), FinishReason.FAULT)
        self._faults += 1
        self._encode_faults = 0
        if self._faults == MAX_FAULTS:
            raise error
        self._runner.reset()
        self._recovering = False
