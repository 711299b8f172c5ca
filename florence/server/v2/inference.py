"""Answers v2 requests: sends their rows to the model, and measures and counts them, for HTTP and gRPC. Holds
the models of a service by name.

Knows no body format and no transport. Until the service has set a model, and while that is not ready,
requests fail with `Closed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from florence.answers.answer import OriginalAnswer
from florence.errors import Closed, DeadlineExceeded, FlorenceError, NotFound, ProtocolError, Unavailable
from florence.runtime.streaming import OnText
from florence.server.outcomes import await_answers, log_answer, name_row
from florence.server.v2.model import ServedModel, parse_version
from florence.server.v2.prompts import AcceptedPrompts
from florence.server.v2.statistics import Reason, Spans, Statistics
from florence.server.v2.tensors import InferAnswer, InferRequest, Row, read_rows
from florence.types.options import OF_SAMPLING, RequestParameters, read_request_parameters
from florence.types.pictures import Pictures
from florence.types.tasks import Task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

MIN_TIMEOUT_US: Final = 1000
LOADING_RETRY_S: Final = 2.0  # a few of these until the model is loaded
T = TypeVar("T")


class Inference:
    """A model behind the v2 protocol. `timeout_s`: limit on the seconds of a request. `served`: its name for
    clients. `any_prompt`: whether a TASK_PROMPT that is not a task is a prompt (FLORENCE_PROMPTS=any).
    `pictures`: how they become RGB in a request that does not say it."""

    def __init__(
        self,
        timeout_s: float,
        served: ServedModel | None = None,
        *,
        any_prompt: bool = False,
        pictures: Pictures = "original",
    ) -> None:
        self.any_prompt, self.pictures = any_prompt, pictures
        self.served = served or ServedModel()
        self.model: Florence2 | None = None
        self.timeout_s = timeout_s
        self.statistics = Statistics(self.served)

    @property
    def ready(self) -> bool:
        return self.model is not None and self.model.ready

    def ready_model(self) -> Florence2:
        """The model. Raises Closed if it is not loaded or takes no requests."""
        if self.model is None or not self.model.ready:
            raise Closed("the model is not ready")
        return self.model

    async def answer(
        self,
        infer: InferRequest,
        build: Callable[[InferAnswer], T],
        *,
        on_text: OnText | None = None,
        log: Callable[[OriginalAnswer], None] = log_answer,
    ) -> T:
        """The reply that `build` makes of the answer. `on_text`: as in `Florence2.submit`, for a
        request with one row. `log`: writes a line for each answer.

        The first row that fails ends the request, with its error; the others are cancelled. If the waiting
        task is cancelled, all rows are.
        """
        model = self.ready_model()
        parameters = generation_options(infer.parameters).with_seed()
        if parameters.pictures is None:
            parameters = parameters.model_copy(update={"pictures": self.pictures})
        options: dict[str, Any] = {"parameters": parameters}
        options["timeout_s"] = timeout_s = self._seconds_for(infer.parameters)
        if on_text is not None:
            options["on_text"] = on_text
        started = time.perf_counter_ns()
        self.statistics.begin()
        try:
            rows = read_rows(infer.columns)
            prompts = self.prompts(model)
            asked = [_ask(prompts, row, index, len(rows)) for index, row in enumerate(rows)]
            futures = [
                model.submit_original(row.image, task, text, **options)
                for row, (task, text) in zip(rows, asked, strict=True)
            ]
            answers = await await_answers(futures, timeout_s, log=log)
            answered = time.perf_counter_ns()
            reply = build(_answer(self.served, infer, answers))
        except BaseException as error:
            self.statistics.fail_for(_reason(error), time.perf_counter_ns() - started)
            raise
        spans = _spans(answers, answered - started, time.perf_counter_ns() - answered)
        self.statistics.succeed(len(rows), spans)
        return reply

    def metadata(self) -> dict[str, Any]:
        """`ServedModel.metadata` of the model as it is now."""
        return self.served.metadata(self._adapters())

    def config(self) -> dict[str, Any]:
        """`ServedModel.config` of the model as it is now."""
        return self.served.config(self._adapters())

    def _adapters(self) -> list[str]:
        """Names that a request's `adapter` may have; empty while no model is loaded."""
        return [] if self.model is None else self.model.adapters

    def prompts(self, model: Florence2) -> AcceptedPrompts:
        """What a request's TASK_PROMPT may be."""
        return AcceptedPrompts(model.tasks, self.any_prompt)

    def _seconds_for(self, parameters: Mapping[str, Any]) -> float:
        """The request's time limit: the service's, or its own `timeout` (microseconds) if that is less.

        One below a millisecond is ignored: no request could keep it, and Triton by default ignores all.
        """
        requested = parameters.get("timeout", 0)
        return self.timeout_s if requested < MIN_TIMEOUT_US else min(self.timeout_s, requested / 1e6)


class ModelRepository:
    """The models that the v2 routes and the gRPC server answer for."""

    def __init__(self, models: Iterable[Inference]) -> None:
        self._models = {inference.served.name: inference for inference in models}

    @property
    def models(self) -> Iterable[Inference]:
        """All models."""
        return self._models.values()

    @property
    def ready(self) -> bool:
        """Whether every model takes requests, as Triton defines a ready server."""
        return all(inference.ready for inference in self.models)

    def check_loaded(self) -> None:
        """Raise Closed while no model is loaded."""
        if all(inference.model is None for inference in self.models):
            raise Closed("the model is not ready", retry_after_s=LOADING_RETRY_S)

    def get(self, name: str) -> Inference | None:
        """The model of that name, in any version; None for an unknown one."""
        return self._models.get(name)

    def find(self, name: str, version: str = "") -> Inference:
        """The model of that name and version. `version`: decimal digits, "" for the latest.

        Raises NotFound for an unknown model or version, ProtocolError for a version that is not a number.
        """
        if version:
            parse_version(version)
        inference = self.get(name)
        if inference is None:
            raise NotFound(f"Request for unknown model: '{name[:200]}' is not found")
        inference.served.check_version(version)
        return inference

    def index(self, *, only_ready: bool) -> list[dict[str, Any]]:
        """The models with their states; with `only_ready`, those that take requests."""
        return [
            {
                "name": inference.served.name,
                "version": inference.served.version,
                "state": "READY" if inference.ready else "LOADING",
            }
            for inference in self.models
            if inference.ready or not only_ready
        ]

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Triton's statistics of one model, or of all where no name is given.

        Raises ProtocolError for an unknown model or version, in Triton's words for statistics.
        """
        if name not in ("", *self._models):
            raise ProtocolError(f"requested model '{name[:200]}' is not available")
        chosen = [self._models[name]] if name else list(self.models)
        for inference in chosen:
            try:
                inference.served.check_version(version)
            except NotFound:
                raise ProtocolError(
                    f"requested model version is not available for model '{inference.served.name}'"
                ) from None
        return {"model_stats": [inference.statistics.as_dict() for inference in chosen]}


def _ask(prompts: AcceptedPrompts, row: Row, index: int, count: int) -> tuple[str | Task, str | None]:
    """The task that a row asks, by its token where the model has it, and the text. Raises FlorenceError,
    naming the row."""
    try:
        task, text = prompts.find(row.task, row.text)
    except FlorenceError as error:
        raise name_row(error, index, count) from None
    return (task.token if task.token in prompts.tasks else task), text


def generation_options(parameters: Mapping[str, Any]) -> RequestParameters:
    """The generation options among a request's parameters; others, such as Triton's own, are ignored, and so
    are options of sampling without `do_sample`: clients send those to any model.

    Raises OptionError for a wrong value.
    """
    known = set(RequestParameters.model_fields)
    if parameters.get("do_sample") in (None, False):
        known -= set(OF_SAMPLING)
    options = {name: value for name, value in parameters.items() if name in known}
    return read_request_parameters(options)


def _answer(served: ServedModel, infer: InferRequest, answers: Sequence[OriginalAnswer]) -> InferAnswer:
    """The rows' answers as one. Its facts: the seed with which rows were sampled, and the number of tiles of
    all pictures; each is left out where there was no sampling, or no picture was cut."""
    seed, tiles = answers[0].seed, sum(answer.tiles for answer in answers)
    facts = ({} if seed is None else {"seed": seed}) | ({"tiles": tiles} if tiles > len(answers) else {})
    texts = [answer.text for answer in answers]
    return InferAnswer(served, infer.id, texts, facts, answers[0].checkpoint)


def _spans(answers: Sequence[OriginalAnswer], answered_ns: int, output_ns: int) -> Spans:
    """The durations of the row that ended last; input is the time that was neither queue nor model."""
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
