"""A model that needs no checkpoint: it checks requests as the real one does, and gives canned answers.

`fake_service` puts it into a real server process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from waiting import PATIENCE_S

from florence.answers.answer import Answer, OriginalAnswer
from florence.engine.config import EngineConfig
from florence.engine.observer import Observer
from florence.engine.request import GenerationOptions
from florence.errors import Closed
from florence.images.decode import open_image
from florence.images.limits import ImageLimits
from florence.model.config import GenerationDefaults
from florence.settings import Settings
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.declared import DeclaredTask, declare
from florence.types.info import RequestLimits
from florence.types.options import GenerationParameters, read_request_parameters
from florence.types.regions import region_text
from florence.types.results import (
    Detection,
    Detections,
    Instance,
    JsonValue,
    OcrRegion,
    OcrRegions,
    Segmentation,
    Tags,
    Text,
)
from florence.types.tasks import TASKS, Kind, Task, TaskTable

PIECES = ("a", " fake")
LOCATIONS = "<loc_100><loc_200><loc_300><loc_400>"
RAW_TEXT = {
    Kind.TEXT: "a fake",
    Kind.TAGS: "a, fake",
    Kind.JSON: '{"a": "fake"}',
    Kind.BOXES: "fake" + LOCATIONS,
    Kind.QUADS: "fake" + LOCATIONS + LOCATIONS,
    Kind.POLYGONS: LOCATIONS + "<loc_500><loc_600>",
    Kind.BOXES_OR_POLYGONS: "fake" + LOCATIONS,
}
RESULT = {
    Kind.TEXT: Text(text="a fake"),
    Kind.TAGS: Tags(tags=["a", "fake"], text="a, fake"),
    Kind.JSON: JsonValue(value={"a": "fake"}, text='{"a": "fake"}'),
    Kind.BOXES: Detections(detections=[Detection(label="fake", box=(1, 2, 3, 4), score=0.5)]),
    Kind.QUADS: OcrRegions(regions=[OcrRegion(text="fake", quad=(1, 2, 3, 2, 3, 4, 1, 4))]),
    Kind.POLYGONS: Segmentation(instances=[Instance(label="", polygons=[[1, 2, 3, 2, 3, 4]])]),
    Kind.BOXES_OR_POLYGONS: Segmentation(instances=[Instance(label="fake", polygons=[[1, 2, 3, 2, 3, 4]])]),
}


@dataclass
class Call:
    """One request as the model got it. task: its token; asked: the `Task`, if one was given."""

    image: Any
    task: str
    asked: Task | None
    text: Any
    options: dict[str, Any]
    future: Future[Any]
    on_text: Callable[[str], None] | None = None
    original: bool = False


@dataclass
class FakeModel:
    """A stand-in for `florence.Florence2` behind the endpoints. A stream gets the words of `PIECES`.

    error: every request fails with it. held: requests stay open until `release` is set. delay_s: each takes
    this long, one after the other. until: a folder; a request ends only when it holds a file with the task's
    name. fails_late: `error` comes after a stream's text. trace: a file that gets a line for each event. own:
    rows of declared tasks.
    """

    ready: bool = True
    alive: bool = True
    error: BaseException | None = None
    held: bool = False
    delay_s: float = 0.0
    until: Path | None = None
    fails_late: bool = False
    checkpoint: str = "fake"
    trace: Path | None = None
    calls: list[Call] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    closed: bool = False
    own: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tasks(self) -> TaskTable:
        """The built-in tasks and the declared ones."""
        return TASKS.extended(self._declared())

    def _declared(self) -> list[Task]:
        """The declared tasks."""
        return declare(("row", row) for row in self.own)

    def submit(
        self,
        image: bytes | Callable[[], bytes],
        task: str | Task,
        text: Any = None,
        *,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Future[Answer]:
        """Record a request for a typed answer."""
        return self._submit(Call(image, *_names(task), text, options, Future(), on_text))

    def submit_original(
        self,
        image: bytes | Callable[[], bytes],
        task: str | Task,
        text: Any = None,
        *,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Future[OriginalAnswer]:
        """Record a request for the original's JSON."""
        return self._submit(Call(image, *_names(task), text, options, Future(), on_text, original=True))

    def _submit(self, call: Call) -> Future[Any]:
        """Record a call and answer it in the pool."""
        parameters = call.options.pop("parameters", None)
        call.options.update(parameters.model_dump(exclude_none=True) if parameters else {})
        future = call.future
        self.calls.append(call)
        future.add_done_callback(lambda done: self.note("cancelled" if done.cancelled() else "done"))
        self.pool.submit(self._run, call)
        return future

    def submit_all(self, image: bytes, asks: list[tuple[str, Any]], **options: Any) -> list[Future[Answer]]:
        """Submit several tasks on one picture."""
        return [self.submit(image, task, text, **options) for task, text in asks]

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters: there are none."""
        return []

    def info(self) -> dict[str, Any]:
        """Information in the shape of the real model's."""
        return {
            "checkpoint": self.checkpoint,
            "revision": None,
            "adapter": None,
            "adapters": [],
            "parameters": 1,
            "device": "cpu",
            "dtype": "float32",
            "encode_stream": "off",
            "picture_size": [32, 32],
            "limits": RequestLimits(**{**Settings().model_dump(), **asdict(EngineConfig())}).model_dump(),
            "generation": asdict(GenerationDefaults(3, 3, True, 1.0, 0, 2))
            | asdict(GenerationOptions(3, 1024, 0, 3, True, 1.0)),
            "tasks": list(self.tasks),
            "declared_tasks": [DeclaredTask.of(each).model_dump(mode="json") for each in self._declared()],
        }

    def memory(self) -> dict[str, int]:
        """Fixed numbers of bytes."""
        return {"caches": 3, "picture_cache": 2, "pixels": 1}

    def close(self, *, drain_s: float | None = None) -> None:
        """Answer or fail the open requests, and accept no more."""
        self.note("close")
        self.closed = True
        self.release.set()
        self.pool.shutdown(wait=True)

    def note(self, event: str) -> None:
        """Append an event to the trace file, if there is one."""
        if self.trace is not None:
            with self.trace.open("a") as file:
                file.write(event + "\n")

    def _run(self, call: Call) -> None:
        """Stream the words, wait as the fields say, and end the request."""
        self.note("start")
        if call.on_text is not None and (self.error is None or self.fails_late):
            for piece in PIECES:
                call.on_text(piece)
        if self.held:
            self.release.wait(PATIENCE_S)
        end = time.monotonic() + self.delay_s
        until = self.until and self.until / call.task.strip("<>")
        while (time.monotonic() < end or (until and not until.exists())) and not call.future.cancelled():
            time.sleep(0.01)
        try:
            answer = self._answer(call)
            outcome = original_of(answer) if call.original else answer
        except Exception as error:  # noqa: BLE001 - goes into the future, as the real model's does
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(error)
            return
        if call.future.set_running_or_notify_cancel():
            call.future.set_result(outcome)

    def _answer(self, call: Call) -> Answer:
        """Check the call as the real model does, and return the canned answer."""
        if self.error is not None:
            raise self.error
        if callable(call.image):
            call.image = call.image()
        if self.closed:
            raise Closed("the model is closed")
        tasks = self.tasks
        task = tasks.resolve(call.asked or call.task)
        others = ("region", "timeout_s", "parameters")
        read_request_parameters({name: each for name, each in call.options.items() if name not in others})
        size = open_image(bytes(call.image), ImageLimits()).size
        given = call.options.get("region") or call.text
        tasks.build_prompt(task, region_text(given, size) if task.input == "region" and given else given)
        drawn = GenerationParameters(**{name: call.options.get(name) for name in ("do_sample", "seed")})
        return Answer.of(
            task,
            result=RESULT[task.kind],
            image_size=ImageSize(width=size[0], height=size[1]),
            finish_reason="stop",
            usage=Usage(picture_tokens=1, prompt_tokens=2, generated_tokens=3),
            timings=Timings(queue_s=0.0, encode_s=0.0, decode_s=0.0, total_s=0.0),
            checkpoint=self.checkpoint,
            raw_text=f"</s><s>{RAW_TEXT[task.kind]}</s>",
            token_ids=[2, 0, 4, 2],
            token_logprobs=[0.0, -0.5, 0.0],
            seed=drawn.with_seed().seed,
        )


def _names(task: str | Task) -> tuple[str, Task | None]:
    """The task's token, and the task itself if one was given."""
    return (task.token, task) if isinstance(task, Task) else (task, None)


def original_of(answer: Answer) -> OriginalAnswer:
    """The answer in the original's shape only."""
    return OriginalAnswer(
        answer.task,
        answer.finish_reason,
        answer.usage,
        answer.timings,
        answer.checkpoint,
        json.dumps(answer.florence()),
        answer.seed,
    )


def load_fake(settings: Settings, device: str, observer: Observer) -> FakeModel:
    """A fake with the fields that `FLORENCE_MODEL` gives as JSON.

    `threads`: of its pool; `load_until`: a file whose appearance ends the loading.
    """
    fields = json.loads(settings.model)
    loaded = Path(fields.pop("load_until", os.sep))
    while not loaded.exists():
        time.sleep(0.05)
    paths = {name: Path(fields.pop(name)) for name in ("trace", "until") if name in fields}
    pool = ThreadPoolExecutor(fields.pop("threads", 1))
    return FakeModel(**fields, **paths, pool=pool)
