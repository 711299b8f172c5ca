"""Answering v2 requests: rows to the model and its answers back, timed and counted. HTTP and gRPC share it.

Knows no body format and no transport. There is no model until the service puts one in; then and when it is
not ready requests are refused with `Closed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from florence.errors import Closed, DeadlineExceeded, FlorenceError, Unavailable
from florence.protocol.replies import Model, off_loop, settle
from florence.protocol.statistics import Reason, Spans, Statistics
from florence.protocol.tensors import InferRequest, Row, of_row, read_rows
from florence.schemas import Answer, GenerationParameters, read_generation_parameters

T = TypeVar("T")


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

    async def answer(self, infer: InferRequest, size: int, build: Callable[[Sequence[Answer]], T]) -> T:
        """What `build` makes of the rows' answers. size: of the request in bytes.

        The first row that fails ends the request, with its error; the others are cancelled.
        """
        model = self.ready_model()
        options = _generation_options(infer.parameters)
        started = time.perf_counter_ns()
        self.statistics.begin()
        try:
            rows = await off_loop(size, read_rows, infer.columns)
            answers = await _answer_rows(model, rows, {"timeout_s": self.timeout_s, **options})
            answered = time.perf_counter_ns()
            reply = build(answers)
        except BaseException as error:
            self.statistics.fail_for(_reason(error), time.perf_counter_ns() - started)
            raise
        spans = _spans(answers, answered - started, time.perf_counter_ns() - answered)
        self.statistics.succeed(len(rows), spans)
        return reply


async def _answer_rows(model: Model, rows: Sequence[Row], options: dict[str, Any]) -> list[Answer]:
    """The answers in the rows' order."""
    waiting = [
        asyncio.ensure_future(settle(model.submit(row.image, row.task, row.text, **options))) for row in rows
    ]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
        return [_answer_of(task, index, len(waiting)) for index, task in enumerate(waiting) if task.done()]
    finally:
        for task in waiting:
            task.cancel()


def _answer_of(task: asyncio.Task[Answer], index: int, count: int) -> Answer:
    try:
        return task.result()
    except FlorenceError as error:
        raise of_row(error, index, count) from error


def _generation_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the request's parameters that say how to generate; others, which Triton knows, are ignored."""
    options = {name: value for name, value in parameters.items() if name in GenerationParameters.model_fields}
    return read_generation_parameters(options).model_dump(exclude_none=True)


def _spans(answers: Sequence[Answer], answered_ns: int, output_ns: int) -> Spans:
    """The request's time, after the row that ended last; what was neither waiting nor the model was input."""
    last = max(answers, key=lambda answer: answer.timings.total_s).timings
    queue_ns = int(last.queue_s * 1e9)
    infer_ns = int((last.encode_s + last.decode_s) * 1e9)
    return Spans(queue_ns, max(0, answered_ns - queue_ns - infer_ns), infer_ns, output_ns)


def _reason(error: BaseException) -> Reason:
    if isinstance(error, asyncio.CancelledError):
        return Reason.CANCELED
    if isinstance(error, Unavailable | DeadlineExceeded):
        return Reason.REJECTED
    return Reason.BACKEND if isinstance(error, FlorenceError) else Reason.OTHER
