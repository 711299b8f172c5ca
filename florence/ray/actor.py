"""The actor of Ray Data's `map_batches`: one checkpoint on the GPU or the cores that Ray gave it.

Knows batches; knows nothing about where rows come from or go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import ray

from florence.bulk.askers import ModelAsker
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask, Job
from florence.images.limits import PDF_DPI
from florence.ray.rows import JOB, Outcomes, as_columns, as_lines
from florence.settings import Settings, read_settings
from florence.types.tasks import TASKS

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from florence.runtime.florence2 import Florence2

CONCURRENCY: Final = 32


class FlorenceActor:
    """Answers questions about the pictures of a batch; `map_batches(FlorenceActor, batch_format="pandas")`.

    A batch has the column `bytes` and optionally `path`, as from `ray.data.read_binary_files`. The result has
    a row for each picture and question, with the columns of `florence bulk --out results.parquet` and
    `error`, a text if the question failed.

    With the pool of `ActorPool.strategy` Ray calls the actor in several threads. All calls share
    `concurrency` threads, each with one picture, so the engine continues with the next batch's pictures while
    the last answers of one batch are generated.

    `tasks`: names, tokens, or questions with texts and options, for batches without jobs. `settings`: None:
    those of the environment on the actor's node. `make_ask`: makes a function that answers instead of a
    model.
    """

    def __init__(
        self,
        tasks: Sequence[str | PictureQuestion] = (),
        settings: Settings | None = None,
        *,
        concurrency: int = CONCURRENCY,
        lines: bool = False,
        pdf_dpi: int = PDF_DPI,
        make_ask: Callable[[], Ask] | None = None,
    ) -> None:
        self._questions = tuple(
            each if isinstance(each, PictureQuestion) else PictureQuestion(TASKS.resolve(each)).checked()
            for each in tasks
        )
        self._pack = as_lines if lines else as_columns
        self._held = ExitStack()
        if make_ask is None:
            model = self._held.enter_context(_load(settings or read_settings(), pdf_dpi))
            self._ask: Ask = ModelAsker(model)
        else:
            self._ask = make_ask()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="florence-ray")

    def __call__(self, batch: pandas.DataFrame) -> pyarrow.Table:
        """The outcomes in the order of the batch."""
        jobs = list(batch[JOB]) if JOB in batch else self._jobs(batch)
        return self._pack(self._threads.map(self._outcomes, jobs))

    def _jobs(self, batch: pandas.DataFrame) -> list[Job]:
        contents = batch["bytes"]
        names = batch["path"] if "path" in batch else [""] * len(contents)
        return [
            Job(PictureItem(name, partial(bytes, content)), self._questions)
            for name, content in zip(names, contents, strict=True)
        ]

    def _outcomes(self, job: Job) -> Outcomes:
        return job, self._ask(job.item, job.questions)


def _load(settings: Settings, pdf_dpi: int) -> Florence2:
    """Load the model on the resources that Ray assigned to this actor: its GPU, the only visible one; else as
    many threads as it has cores."""
    from florence.runtime.florence2 import Florence2

    given = ray.get_runtime_context().get_assigned_resources()
    device = "cuda" if given.get("GPU") else "cpu"
    if device == "cpu" and settings.threads is None:
        settings = settings.model_copy(update={"threads": max(int(given.get("CPU", 1)), 1)})
    return Florence2.from_settings(settings, device, pdf_dpi=pdf_dpi)
