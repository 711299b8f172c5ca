"""Answering v2 requests: rows to the model and its answers back, timed and counted. HTTP and gRPC share it.

Knows no body format and no transport. There is no model until the service puts one in; then and when it is
not ready requests are refused with `Closed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from florence.answers.answer import Answer
from florence.errors import ClientLeft, Closed, DeadlineExceeded, FlorenceError, Unavailable
from florence.runtime.streaming import OnText
from florence.server.replies import Model, log_answer, stopped
from florence.server.v2.statistics import Reason, Spans, Statistics
from florence.server.v2.tensors import InferRequest, Row, of_row, read_rows
from florence.types.options import GenerationParameters, read_generation_parameters

LEAST_TIMEOUT_US: Final = 1000
T = TypeVar("T")

Left = Callable[[], Awaitable[None]]
"""Ends when the client has left."""

Outcome = Future[Answer] | asyncio.Future[Answer]


class Inference:
    """The model behind the v2 protocol. timeout_s: seconds after which a request is given up."""

    def __init__(self, timeout_s: float) -> None:
        self.model: Model | None = None
        self.timeout_s = timeout_s
        self.statistics = Statistics()

    @property
    def ready(self) -> bool:
        return self.model is not None and self.model.ready

    def ready_model(self) -> Model:
        """The model; Closed when there is none or it takes no requests."""
        if self.model is None or not self.model.ready:
            raise Closed("the model is not ready")
        return self.model

    async def answer(
        self,
        infer: InferRequest,
        build: Callable[[Sequence[Answer]], T],
        *,
        left: Left | None = None,
        on_text: OnText | None = None,
        log: Callable[[Answer], None] = log_answer,
    ) -> T:
        """What `build` makes of the rows' answers. on_text: as the model's, of a request with one row. log:
        writes a line for each answer.

        The first row that fails ends the request, with its error; the others are cancelled. So they are, with
        ClientLeft, when `left` ends first.
        """
        model = self.ready_model()
        options: dict[str, Any] = {"parameters": generation_options(infer.parameters)}
        options["timeout_s"] = self._seconds_for(infer.parameters)
        if on_text is not None:
            options["on_text"] = on_text
        started = time.perf_counter_ns()
        self.statistics.begin()
        try:
            rows = read_rows(infer.columns)
            answers = await _answer_rows(model, rows, options, left)
            answered = time.perf_counter_ns()
            for answer in answers:
                log(answer)
            reply = build(answers)
        except BaseException as error:
            self.statistics.fail_for(_reason(error), time.perf_counter_ns() - started)
            raise
        spans = _spans(answers, answered - started, time.perf_counter_ns() - answered)
        self.statistics.succeed(len(rows), spans)
        return reply

    def _seconds_for(self, parameters: Mapping[str, Any]) -> float:
        """Seconds until the request is given up: ours, or its own `timeout` (microseconds) if that is less.

        One below a millisecond is none: nobody answers so fast, and Triton, as it is delivered, ignores all.
        """
        wished = parameters.get("timeout", 0)
        return self.timeout_s if wished < LEAST_TIMEOUT_US else min(self.timeout_s, wished / 1e6)


def generation_options(parameters: Mapping[str, Any]) -> GenerationParameters:
    """Those of a request's parameters that say how to generate; others, which Triton knows, are ignored.

    Raises OptionError for a wrong value.
    """
    options = {name: value for name, value in parameters.items() if name in GenerationParameters.model_fields}
    return read_generation_parameters(options)


async def _answer_rows(
    model: Model, rows: Sequence[Row], options: dict[str, Any], left: Left | None
) -> list[Answer]:
    """The answers in the rows' order. When it ends otherwise, rows that are not finished are cancelled."""
    futures = [model.submit(row.image, row.task, row.text, **options) for row in rows]
    if all(future.done() for future in futures):
        return _answers_of(futures, options["timeout_s"])
    waiting: list[asyncio.Future[Answer]] = [asyncio.wrap_future(future) for future in futures]
    watch = None if left is None else asyncio.ensure_future(left())
    if watch is not None:
        watch.add_done_callback(lambda _: _give_up(waiting))
    try:
        await asyncio.wait(waiting, timeout=options["timeout_s"], return_when=asyncio.FIRST_EXCEPTION)
        if watch is not None and watch.done():
            watch.result()
            raise ClientLeft
        return _answers_of(waiting, options["timeout_s"])
    finally:
        if watch is not None:
            watch.cancel()
        _give_up(waiting)


def _give_up(waiting: Sequence[asyncio.Future[Answer]]) -> None:
    for future in waiting:
        if not future.cancel() and not future.cancelled():
            future.exception()  # else asyncio warns that nobody asked for it


def _answers_of(futures: Sequence[Outcome], timeout_s: float) -> list[Answer]:
    """The answers, or the error of the first row that has one, or of those that have no answer."""
    for index, future in enumerate(futures):
        error = future.exception() if future.done() and not future.cancelled() else None
        if isinstance(error, FlorenceError):
            raise of_row(error, index, len(futures))
        if error is not None:
            raise error
    if any(future.cancelled() for future in futures):
        raise stopped()
    if not all(future.done() for future in futures):
        raise DeadlineExceeded(f"the request was not finished within {timeout_s:g} s")
    return [future.result() for future in futures]


def _spans(answers: Sequence[Answer], answered_ns: int, output_ns: int) -> Spans:
    """The request's time, after the row that ended last; what was neither waiting nor the model was input."""
    last = max(answers, key=lambda answer: answer.timings.total_s).timings
    queue_ns = int(last.queue_s * 1e9)
    infer_ns = int((last.encode_s + last.decode_s) * 1e9)
    return Spans(queue_ns, max(0, answered_ns - queue_ns - infer_ns), infer_ns, output_ns)


def _reason(error: BaseException) -> Reason:
    if isinstance(error, asyncio.CancelledError | ClientLeft):
        return Reason.CANCELED
    if isinstance(error, Unavailable | DeadlineExceeded):
        return Reason.REJECTED
    return Reason.BACKEND if isinstance(error, FlorenceError) else Reason.OTHER
