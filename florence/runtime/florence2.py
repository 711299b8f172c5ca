"""Florence-2 as a Python object: load a checkpoint, run tasks on pictures, get typed answers.

Pictures are read and answers generated in other threads, so `submit` returns at once in any thread or event
loop. Knows nothing about HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

from florence.answers.answer import Answer, OriginalAnswer
from florence.errors import FlorenceError
from florence.images.limits import PDF_DPI
from florence.readers.picture import PictureSource
from florence.runtime.configured import keywords_of
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.futures import failed, outcome_in
from florence.runtime.load_options import LoadKeywords, LoadOptions
from florence.runtime.loading import Loaded, load
from florence.runtime.pipeline import TaskRequest, TaskText
from florence.runtime.run_options import (
    Item,
    RunOptions,
    grey_picture,
    max_requests,
    own_picture,
    parameters_of,
    reads_text,
    task_of,
    view_of,
)
from florence.runtime.shares import Shares
from florence.runtime.streaming import AnswerStream, OnText
from florence.settings import Settings
from florence.types.tasks import Task, TaskSpec, TaskTable, task_pairs


class Florence2:
    """A loaded checkpoint on one device; make one with `Florence2.load`. Thread-safe.

    Use it as a context manager, or call `close` at the end. `pipeline`, `engine`: its parts.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.pipeline = loaded.pipeline
        self.engine = loaded.engine
        options, limits = loaded.options, loaded.info["limits"]
        # Requests that `run_many` keeps in flight: a full engine, and the next encode batch ready; more would
        # only wait.
        self._in_flight = limits["max_batch_size"] + limits["max_encode_batch"]
        self._dispatcher = Dispatcher(
            loaded.pipeline,
            loaded.engine,
            loaded.readers,
            options.observer,
            shares=Shares(options.owner_limit, options.owner),
        )

    @classmethod
    def load(cls, name: str, **options: Unpack[LoadKeywords]) -> Florence2:
        """Load a checkpoint: a directory, a hub id (at `revision`), or "demo", the small one in the package.

        `options`: those of `LoadOptions`. On a CPU the process keeps freed memory.

        Raises `CheckpointError` for a checkpoint that can't be found or is not supported, `SettingsError` for
        a device or dtype that is not available, and for tasks that clash or are malformed.
        """
        given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
        return cls(load(name, LoadOptions(**given)))

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        device: str,
        /,
        *,
        workers: int = 0,
        pdf_dpi: int = PDF_DPI,
        **options: Unpack[LoadKeywords],
    ) -> Florence2:
        """`load` what the settings name, on one of their devices. `workers`: those of the service that this
        is part of, which has reader processes, allocates memory at the start and reads no PDFs; 0 outside a
        service. `pdf_dpi`: as in `ImageLimits`. `options`: those of `load` that no setting has."""
        keywords = keywords_of(settings, device, workers, pdf_dpi)
        return cls.load(settings.model, **{**keywords, **options})

    def submit(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        *,
        on_text: OnText | None = None,
        **options: Unpack[RunOptions],
    ) -> Future[Answer]:
        """Start one task on one picture; returns a future of the answer.

        `image`: a PIL image (copied, so it may be changed or closed afterwards), encoded bytes, a path, or a
        function that returns the bytes (called in another thread). The EXIF orientation is applied first, but
        not to a PIL image with `pictures="original"`. `task`: a token such as `<OD>`, a name such as
        `object_detection`, or a `Task`; or None, with a `prompt` among the options. `text`: the task's text
        or region input. `on_text`: called with the answer's text piece by piece while it is generated, in
        another thread; only with `num_beams=1` and for tasks that answer in text. Cancelling the future frees
        the request's slot at the next step.

        The future's exceptions: `TaskError`, `RegionError`, `ImageError`, `OptionError`, `Overloaded`,
        `DeadlineExceeded`, `EngineError` or `Closed`.
        """
        return self._start(image, [(task, text)], options, on_text)[0]

    def submit_original(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        *,
        on_text: OnText | None = None,
        **options: Unpack[RunOptions],
    ) -> Future[OriginalAnswer]:
        """Like `submit`, but the answer is only in the original's shape: no typed result is made."""
        future: Future[Any] = self._start(image, [(task, text)], options, on_text, original=True)[0]
        return future

    def run(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        **options: Unpack[RunOptions],
    ) -> Answer:
        """`submit`, and wait for the answer. Raises the future's exception."""
        return self.submit(image, task, text, **options).result()

    def submit_all(
        self, image: PictureSource, asks: Iterable[TaskSpec], **options: Unpack[RunOptions]
    ) -> list[Future[Answer]]:
        """Start many tasks on one picture, which is read and encoded once. Returns a future for each, as
        `submit` does.

        `asks`: tasks, or pairs of a task and its text or region. Raises `TaskError` for anything else.
        """
        return self._start(image, task_pairs(asks), options)

    def analyze(
        self, image: PictureSource, asks: Iterable[TaskSpec], **options: Unpack[RunOptions]
    ) -> list[Answer | Exception]:
        """`submit_all`, and wait for the answers; for a task that fails the list has its exception."""
        return [outcome_in(future) for future in self.submit_all(image, asks, **options)]

    def stream(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        **options: Unpack[RunOptions],
    ) -> AnswerStream:
        """Like `submit`; the result iterates over the text while it is generated, and has the `answer`.

        Uses one beam, since beams compete until the last token; only for tasks that answer in text.
        """
        return AnswerStream(
            lambda on_text: self._start(image, [(task, text)], options, on_text, one_beam=True)[0]
        )

    def run_many(self, items: Iterable[Item], **options: Unpack[RunOptions]) -> list[Answer | Exception]:
        """Answers of many (picture, task) or (picture, task, text) items, in their order.

        For an item that fails the list has its exception; other items are not affected. Items are consumed as
        room becomes free, so a generator may read pictures lazily.
        """
        most = min(self._in_flight, self.room(**options))
        answers: list[Answer | Exception] = []
        in_flight: deque[Future[Answer]] = deque()
        for item in items:
            if len(in_flight) >= most:
                answers.append(outcome_in(in_flight.popleft()))
            in_flight.append(self.submit(*item, **options))
        return answers + [outcome_in(future) for future in in_flight]

    def room(self, **options: Unpack[RunOptions]) -> int:
        """How many requests with these options may wait at once if there are no others."""
        requests = max_requests(options, self.pipeline.max_tiles)
        return max(1, int(self._loaded.info["limits"]["max_queue"]) // requests)

    def warm_up(self) -> None:
        """Run a grey picture through every part, so that the first request is not slower than later ones."""
        self.run(grey_picture(), "<CAPTION>", max_new_tokens=4)

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.engine.ready and not self._dispatcher.closed

    @property
    def alive(self) -> bool:
        """Whether the engine works, or will recover without a restart."""
        return self.engine.alive

    @property
    def checkpoint(self) -> str:
        """The name in every answer, with the revision where the checkpoint has one."""
        return self.pipeline.checkpoint

    @property
    def tasks(self) -> TaskTable:
        """The tasks that this checkpoint answers: the built-in ones, and those that it was loaded with."""
        return self.pipeline.tasks

    @property
    def adapters(self) -> list[str]:
        """The adapters that a request may name."""
        return [each.name for each in self.pipeline.adapters.infos]

    def info(self) -> dict[str, Any]:
        """A description of what runs: checkpoint, revision, adapters, device, dtype, limits, generation
        settings, tasks; `encode_stream`: whether encodes run beside decode steps, "auto" until that is
        decided."""
        found = self._loaded
        return found.info | {"encode_stream": found.encode_stream()} | self.pipeline.described()

    def memory(self) -> dict[str, int]:
        """Bytes in use: `caches` (keys and values), `picture_cache` (features), `pixels` (readers' buffers),
        `adapters`."""
        return self._loaded.memory()

    def close(self, *, drain_s: float | None = None) -> None:
        """Take no more requests, finish the accepted ones (for at most `drain_s` seconds, None: all), and
        free the device.

        Requests that are not finished by then fail with `Closed`. Returns after the decode step in progress,
        a few seconds later if an `on_text` callback holds up the last answers. Closing twice does nothing.
        """
        self.pipeline.adapters.close()
        self._dispatcher.close(drain_s)

    def __enter__(self) -> Florence2:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _start(
        self,
        image: PictureSource,
        asks: Sequence[tuple[str | Task | None, TaskText]],
        options: RunOptions,
        on_text: OnText | None = None,
        *,
        one_beam: bool = False,
        original: bool = False,
    ) -> list[Future[Answer]]:
        """Start tasks on one picture; an error in the picture or the options fails them all. `one_beam`:
        default to one beam; `original`: as in `TaskRequest`."""
        defaults = self._loaded.options
        try:
            parameters = parameters_of(options)
            tasks = [(task_of(task, options), text) for task, text in asks]
            reads = any(reads_text(self.tasks, task) for task, _ in tasks)
            view = view_of(parameters, defaults.pictures, self.pipeline.max_tiles, reads_text=reads)
            image = own_picture(image, view, defaults.limits)
        except FlorenceError as error:
            return [failed(error.with_traceback(None)) for _ in asks]  # frames hold the picture
        if one_beam and parameters.num_beams is None:
            parameters = parameters.model_copy(update={"num_beams": 1})
        region, timeout_s, on_tile = options.get("region"), options.get("timeout_s"), options.get("on_tile")
        requests = [
            TaskRequest(task, text, parameters, region, timeout_s, on_text, original, on_tile)
            for task, text in tasks
        ]
        return self._dispatcher.submit(image, requests, view)
