"""Makes the engine's requests from a picture and a task.

The one place that joins pictures, tasks, regions and tokens; `answering` makes the answer. Knows nothing
about threads, devices or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from florence.checkpoint.tokenizer import Tokenizer
from florence.engine.adapters import EngineAdapter
from florence.engine.config import DEFAULT_MAX_NEW_TOKENS
from florence.engine.request import GenerationOptions, Request
from florence.errors import OptionError, TaskError
from florence.images.tiles import MAX_TILES
from florence.model.config import GenerationDefaults
from florence.readers.picture import ReadPicture
from florence.runtime.adapters import Adapters
from florence.runtime.gathering import OnTile
from florence.runtime.streaming import OnText, check_streamed
from florence.types.declared import DeclaredTask
from florence.types.filters import ItemFilter
from florence.types.options import GenerationParameters, RequestParameters, check_timeout
from florence.types.regions import region_text
from florence.types.tasks import Input, Task, TaskTable, one_input
from florence.types.tiling import TileOptions

TaskText = str | Sequence[float] | None
"""A text, or a region: four numbers in pixels, or `<loc_n>` text; None for neither."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One task on a picture, as requested. `task`: a token, a name, or a `Task`; `timeout_s`: seconds until
    `DeadlineExceeded`, None for no limit; `on_text`: called with the answer's text piece by piece;
    `original`: make the answer in the original's shape only; `on_tile`: called with the number of finished
    tiles."""

    task: str | Task
    text: TaskText
    parameters: RequestParameters
    region: TaskText = None
    timeout_s: float | None = None
    on_text: OnText | None = None
    original: bool = False
    on_tile: OnTile | None = None


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A task with its text or region (`given`), resolved options and filter of items (`wanted`). A region has
    not been compared with the picture yet."""

    task: Task
    given: TaskText
    options: GenerationOptions
    wanted: ItemFilter
    adapter: EngineAdapter | None = None


@dataclass(frozen=True, slots=True)
class PreparedTile:
    """A tile of a picture, or all of it, with the task that the engine is asked. `size`: width and height,
    `corner`: left and top in the picture, in pixels."""

    task: Task
    size: tuple[int, int]
    corner: tuple[int, int]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is needed of a request to make its answer; without the pixels. `image_size`: width and height of
    the picture; `tiles`: one if it is not cut."""

    asked: CheckedTask
    image_size: tuple[int, int]
    tiles: tuple[PreparedTile, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Turns pictures and tasks into requests, for one checkpoint.

    `max_new_tokens`: the longest answer that there is room for (FLORENCE_MAX_NEW_TOKENS, at most the
    decoder's positions); requests for more are capped. `checkpoint`: its name in every answer. `adapters`:
    those that a request may name, and all tasks. `score_temperature`: divides the log-odds of scores
    (FLORENCE_SCORE_TEMPERATURE). `max_tiles`: of one picture (FLORENCE_MAX_TILES).
    """

    checkpoint: str
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    max_new_tokens: int
    adapters: Adapters = field(default_factory=Adapters)
    score_temperature: float = 1.0
    max_tiles: int = MAX_TILES

    @property
    def tasks(self) -> TaskTable:
        """The tasks of the checkpoint and of the adapters."""
        return self.adapters.table

    def described(self) -> dict[str, Any]:
        """The part of `info` about adapters and tasks."""
        own = [task for task in self.tasks.values() if not task.built_in]
        return {
            "adapters": [each.model_dump(mode="json") for each in self.adapters.infos],
            "tasks": list(self.tasks),
            "declared_tasks": [DeclaredTask.of(task).model_dump(mode="json") for task in own],
        }

    def check(self, request: TaskRequest) -> CheckedTask:
        """All checks that need no picture. Raises `TaskError` and `OptionError`."""
        given = one_input(request.text, request.region)
        check_timeout(request.timeout_s)
        task = self.tasks.resolve(request.task)
        options = self.options(request.parameters, task)
        self.tasks.check_input(task, given)
        if request.on_text is not None:
            check_streamed(task, options.num_beams, tiled=request.parameters.tiled)
        if request.parameters.tiled:
            self._check_tiled(task, request.parameters)
        adapter = self.adapters.find(request.parameters.adapter, task)
        return CheckedTask(task, given, options, request.parameters, adapter)

    def prepare(
        self,
        checked: CheckedTask,
        picture: ReadPicture,
        deadline: float | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> tuple[list[Request], Prepared]:
        """The engine's requests, one for each tile, and what the answer needs of them. `deadline`: by the
        engine's clock; `on_token`: as in `engine.Request`.

        Raises `RegionError` for a region that is malformed or outside the picture.
        """
        task = self.tasks.resolve(checked.task.in_tiles) if picture.tiles else checked.task
        requests, tiles = list[Request](), list[PreparedTile]()
        for tile in picture.tiles or (picture,):
            text = checked.given
            if text is not None:
                text = region_text(text, tile.size) if task.input is Input.REGION else str(text)
            prompt_ids = tuple(self.tokenizer.encode(self.tasks.build_prompt(task, text)))
            requests.append(
                Request(
                    pixels=tile.pixels,
                    prompt_ids=prompt_ids,
                    options=checked.options,
                    deadline=deadline,
                    on_token=on_token,
                    digest=tile.digest,
                    adapter=checked.adapter,
                )
            )
            tiles.append(PreparedTile(task, tile.size, tile.corner, len(prompt_ids)))
        return requests, Prepared(checked, picture.size, tuple(tiles))

    def options(self, parameters: GenerationParameters, task: Task | None = None) -> GenerationOptions:
        """The parameters, with the task's or the checkpoint's settings for those that are None; a request
        that samples gets one beam and a seed.

        Raises `OptionError` where `min_new_tokens` is more than an answer may have.
        """
        fewest = parameters.min_new_tokens or 0
        if fewest > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens must be at most {self.max_new_tokens}, the most tokens of an answer here "
                f"(FLORENCE_MAX_NEW_TOKENS), got {fewest}"
            )
        most = parameters.max_new_tokens or max(DEFAULT_MAX_NEW_TOKENS, fewest)
        tokens = {"min_new_tokens": fewest, "max_new_tokens": min(most, self.max_new_tokens)}
        names = [each.name for each in fields(GenerationOptions)]
        own = {name: value for name, value in asdict(self.defaults).items() if name in names}
        if task is not None and task.no_repeat_ngram_size is not None:
            own["no_repeat_ngram_size"] = task.no_repeat_ngram_size
        if parameters.do_sample:
            own["num_beams"] = 1
        asked = parameters.with_seed().model_dump(include=set(names), exclude_none=True)
        return GenerationOptions(**{**own, **asked, **tokens})

    def _check_tiled(self, task: Task, asked: TileOptions) -> None:
        if not task.in_tiles:
            able = ", ".join(each.token for each in self.tasks.values() if each.in_tiles)
            raise TaskError(f"{task.token} can't be asked in tiles; leave tiles out, or ask one of {able}")
        columns, rows = asked.grid or (1, 1)
        if columns * rows > self.max_tiles:
            raise OptionError(
                f"tiles={asked.tiles} are {columns * rows} tiles; up to {self.max_tiles} are allowed "
                "(FLORENCE_MAX_TILES)"
            )
