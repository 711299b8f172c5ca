"""Florence-2 as a Python object: load a checkpoint, run tasks on pictures, get typed answers.

Pictures are read in threads of their own and answers generated in the engine's, so `submit` returns at once
in any thread or event loop. Knows nothing about HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Unpack

from florence.answers.answer import Answer, OriginalAnswer
from florence.checkpoint.adapter_list import AdapterSources
from florence.engine.config import EngineConfig
from florence.engine.observer import Observer
from florence.errors import FlorenceError
from florence.images.limits import DEFAULT_LIMITS, PDF_DPI, ImageLimits
from florence.images.tiles import MOST_TILES
from florence.model.devices import pick_device
from florence.readers.picture import PictureSource
from florence.runtime.configured import load_arguments
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.futures import failed, outcome_in
from florence.runtime.loading import Loaded, load
from florence.runtime.pipeline import TaskRequest, TaskText
from florence.runtime.run_options import (
    Item,
    RunOptions,
    grey_picture,
    most_places,
    own_picture,
    parameters_of,
    reads_text,
    task_of,
    view_of,
)
from florence.runtime.shares import Shares, no_owner
from florence.runtime.streaming import AnswerStream, OnText
from florence.settings import Settings
from florence.types.pictures import Pictures
from florence.types.tasks import Task, TaskSpec, TaskTable, task_pairs


class Florence2:
    """A loaded checkpoint on one device; make one with `Florence2.load`. Safe to use from many threads.

    Use it as a context manager, or call `close` at the end. `pipeline`, `engine`: its parts.
    """

    def __init__(self, loaded: Loaded, pictures: Pictures = "seen", shares: Shares | None = None) -> None:
        self.pipeline = loaded.pipeline
        self.engine = loaded.engine
        self._info, self._encode_stream = loaded.info, loaded.encode_stream
        self._memory = loaded.memory
        limits = loaded.info["limits"]
        # What `run_many` keeps in flight: a full engine with the next pictures ready; more would only wait.
        self._in_flight = limits["max_batch_size"] + limits["max_encode_batch"]
        self._limits, self._pictures = loaded.limits, pictures
        self._dispatcher = Dispatcher(
            loaded.pipeline, loaded.engine, loaded.readers, loaded.observer, shares=shares
        )

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        base: str | None = None,
        adapter: str | None = None,
        adapters: AdapterSources | None = None,
        max_adapters: int = 8,
        max_adapter_rank: int = 64,
        input_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        limits: ImageLimits | None = None,
        config: EngineConfig | None = None,
        threads: int | None = None,
        readers: int = 0,
        fast_jpeg: bool = False,
        pictures: Pictures = "seen",
        observer: Observer | None = None,
        on_broken: Callable[[], None] | None = None,
        tasks: Sequence[Task] | str | None = None,
        score_temperature: float = 1.0,
        owner: Callable[[], str] = no_owner,
        owner_share: float = 1.0,
        max_tiles: int = MOST_TILES,
    ) -> Florence2:
        """Load a checkpoint: a directory, a hub id (at `revision`), or "demo", the small one in the package.

        `base`: a checkpoint that gives the tokenizer and the preprocessor which this one lacks. `adapter`: a
        LoRA adapter, a directory or a hub id, which is merged into the weights. `adapters`: those that a
        request may name (`adapter="receipts"`), name -> directory or hub id, or a file that lists them; at
        most `max_adapters`, of at most `max_adapter_rank`. `input_size`: pixels of the
        square that pictures are resized to, a multiple of 32, in place of the preprocessor's.
        `device`: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1". `dtype`: "auto" (bfloat16 where
        the processor is faster with it, else float32), "float32", "bfloat16", "float16", "int8" (linear
        layers, on a CPU with VNNI), "fp8" (most layers of an encode, on a GPU of sm_89 or newer; a CPU
        emulates it). `limits`: on pictures. `config`: of the engine; its default suits the
        device. `threads`: CPU threads of the model, in place of the configuration's. `readers`: processes
        that read pictures, so that a crash or a bomb in a decoder fails one request; 0 for threads of this
        process. `fast_jpeg`: large JPEGs are decoded at less than their size, which changes pixels a little.
        `pictures`: how they become RGB unless a request says it: "seen", as a viewer shows them, or
        "original", as the original's processor does it. `observer`: gets the engine's events. `on_broken`: is
        called when the engine has failed and can't recover. `tasks`: the checkpoint's tasks beside the
        built-in ones, or as FLORENCE_TASKS names them; None: those of the file `florence_tasks.json` beside
        the checkpoint. `score_temperature`: above 0; divides the log-odds of scores. `owner`: says whose
        request is submitted, called in the thread and the context that submit it; `owner_share`: of the
        queue, for the waiting requests of one owner. `max_tiles`: of one picture, no more than may wait. On a
        CPU the process keeps the memory that it frees.

        Raises `CheckpointError` for a checkpoint that can't be found or does not fit, `SettingsError` for a
        device or dtype that is not there, and for tasks that clash or are malformed.
        """
        config = config or EngineConfig.for_device(pick_device(device).type)
        loaded = load(
            name,
            revision=revision,
            base=base,
            adapter=adapter,
            adapters=adapters,
            max_adapters=max_adapters,
            max_adapter_rank=max_adapter_rank,
            input_size=input_size,
            device=device,
            dtype=dtype,
            limits=limits or DEFAULT_LIMITS,
            config=config if threads is None else replace(config, threads=threads),
            readers=readers,
            fast_jpeg=fast_jpeg,
            observer=observer or Observer(),
            on_broken=on_broken,
            tasks=tasks,
            score_temperature=score_temperature,
            max_tiles=min(max_tiles, int(owner_share * config.max_queue)),
        )
        shares = Shares(int(owner_share * loaded.info["limits"]["max_queue"]), owner)
        return cls(loaded, pictures, shares)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        device: str,
        *,
        workers: int = 0,
        observer: Observer | None = None,
        on_broken: Callable[[], None] | None = None,
        owner: Callable[[], str] = no_owner,
        pdf_dpi: int = PDF_DPI,
    ) -> Florence2:
        """`load` what the settings name, on one of their devices. `workers`: of the service that this is one
        of, with reader processes and the memory of a full engine from the start; 0 outside a service. A
        service reads no PDF; `pdf_dpi`: as `ImageLimits` has it."""
        return cls.load(
            settings.model,
            device=device,
            observer=observer,
            on_broken=on_broken,
            owner=owner,
            **load_arguments(settings, device, workers, pdf_dpi),
        )

    def submit(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        *,
        on_text: OnText | None = None,
        **options: Unpack[RunOptions],
    ) -> Future[Answer]:
        """Start one task on one picture; the answer comes in the future.

        `image`: a PIL picture, taken as it is now (it is copied, and may be changed or closed afterwards), or
        bytes, a path, or a function that gives the bytes (called where pictures are read, in another thread).
        All are turned by their EXIF orientation first; a PIL picture is not with `pictures="original"`.
        `task`: a token such as `<OD>`, a name such as `object_detection`, or a `Task`; or none, with a
        `prompt` among the options. `text`: what the task reads besides the picture. `on_text`: is told the
        answer's text piece by piece while it is generated, in another thread; only with `num_beams=1` and
        for answers that are read from the text alone. Cancelling the future frees the device at its next
        step.

        What goes wrong comes in the future: `TaskError`, `RegionError`, `ImageError`, `OptionError`,
        `Overloaded`, `DeadlineExceeded`, `EngineError` or `Closed`.
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
        """As `submit`, for an answer in the original's shape only: no typed result is made."""
        future: Future[Any] = self._start(image, [(task, text)], options, on_text, original=True)[0]
        return future

    def run(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        **options: Unpack[RunOptions],
    ) -> Answer:
        """`submit` and wait for the answer; raises what the future has."""
        return self.submit(image, task, text, **options).result()

    def submit_all(
        self, image: PictureSource, asks: Iterable[TaskSpec], **options: Unpack[RunOptions]
    ) -> list[Future[Answer]]:
        """Start many tasks on one picture, which is read and encoded once; a future for each, as from
        `submit`.

        `asks`: tasks, or pairs of a task and its text or region. Raises TaskError for anything else.
        """
        return self._start(image, task_pairs(asks), options)

    def analyze(
        self, image: PictureSource, asks: Iterable[TaskSpec], **options: Unpack[RunOptions]
    ) -> list[Answer | Exception]:
        """`submit_all` and wait for the answers; a task that fails has its exception in its place."""
        return [outcome_in(future) for future in self.submit_all(image, asks, **options)]

    def stream(
        self,
        image: PictureSource,
        task: str | Task | None = None,
        text: TaskText = None,
        **options: Unpack[RunOptions],
    ) -> AnswerStream:
        """Like `submit`, to iterate over the answer's text while it is generated; then its `answer` is there.

        With one beam, since beams compete until the last token; for tasks that answer in text.
        """
        return AnswerStream(
            lambda on_text: self._start(image, [(task, text)], options, on_text, one_beam=True)[0]
        )

    def run_many(self, items: Iterable[Item], **options: Unpack[RunOptions]) -> list[Answer | Exception]:
        """Answers of many (picture, task) or (picture, task, text) items, in their order.

        An item that fails has its exception in its place; the others are not touched by it. Items are taken
        from the iterable as room comes free, so a generator may read pictures as they are needed.
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
        """How many requests with these options may wait at once, when there are no others."""
        places = most_places(options, self.pipeline.max_tiles)
        return max(1, int(self._info["limits"]["max_queue"]) // places)

    def warm_up(self) -> None:
        """Run a grey picture through every part, so that the first request is not slower than the next."""
        self.run(grey_picture(), "<CAPTION>", max_new_tokens=4)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.ready and not self._dispatcher.closed

    @property
    def alive(self) -> bool:
        """Whether the engine works, or will again without a restart."""
        return self.engine.alive

    @property
    def checkpoint(self) -> str:
        """The name that every answer says, with the revision where the checkpoint has one."""
        return self.pipeline.checkpoint

    @property
    def tasks(self) -> TaskTable:
        """The tasks that this checkpoint answers: the built-in ones, and those that it was loaded with."""
        return self.pipeline.tasks

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that a request may say."""
        return [each.name for each in self.pipeline.adapters.infos]

    def info(self) -> dict[str, Any]:
        """What runs, and how: checkpoint, revision, adapters, device, dtype, limits, generation settings,
        tasks; `encode_stream`: whether encodes run beside decode steps, "auto" until that is decided."""
        return self._info | {"encode_stream": self._encode_stream()} | self.pipeline.described()

    def memory(self) -> dict[str, int]:
        """Bytes on device and machine: `caches` of the requests that are decoded, `picture_cache` of the
        latest pictures, `pixels` that readers write, `adapters` that requests name."""
        return self._memory()

    def close(self, *, drain_s: float | None = None) -> None:
        """Take no more requests, finish those that came (for at most `drain_s` seconds), and free the device.

        Requests that are not finished by then fail with `Closed`, also those whose picture is still being
        read. It returns after the decode step in progress, and a few seconds more where a callback for text
        holds up the last answers. Closing twice does nothing.
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
        """Start tasks on one picture; what is wrong with the picture or the options fails them all.
        `one_beam`: unless the options say another number; `original`: as `TaskRequest` has it."""
        try:
            parameters = parameters_of(options)
            tasks = [(task_of(task, options), text) for task, text in asks]
            reads = any(reads_text(self.tasks, task) for task, _ in tasks)
            view = view_of(parameters, self._pictures, self.pipeline.max_tiles, reads_text=reads)
            image = own_picture(image, view, self._limits)
        except FlorenceError as error:
            return [failed(error.with_traceback(None)) for _ in asks]  # this frame holds the picture
        if one_beam and parameters.num_beams is None:
            parameters = parameters.model_copy(update={"num_beams": 1})
        region, timeout_s, on_tile = options.get("region"), options.get("timeout_s"), options.get("on_tile")
        requests = [
            TaskRequest(task, text, parameters, region, timeout_s, on_text, original, on_tile)
            for task, text in tasks
        ]
        return self._dispatcher.submit(image, requests, view)
