"""Makes the engine's request from a picture and a task, and the typed answer from the engine's tokens.

The one place that joins pictures, tasks, regions, tokens and answers. Knows nothing about threads, devices or
HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from florence.answers import Piece, parse_answer
from florence.answers.answer import Answer, OriginalAnswer
from florence.answers.filtering import keep_items, keep_original_items
from florence.answers.original import post_process_text
from florence.checkpoint.tokenizer import Tokenizer
from florence.engine.adapters import EngineAdapter
from florence.engine.config import DEFAULT_MAX_NEW_TOKENS
from florence.engine.request import Generation, GenerationOptions, Request
from florence.errors import OptionError, TaskError
from florence.images.tiles import MOST_TILES
from florence.model.config import GenerationDefaults
from florence.readers.picture import ReadPicture
from florence.runtime.adapters import Adapters
from florence.runtime.gathering import OnTile
from florence.runtime.streaming import OnText
from florence.types.adapters import AdapterOption
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.declared import DeclaredTask
from florence.types.filters import ItemFilter
from florence.types.options import GenerationParameters
from florence.types.regions import region_text
from florence.types.results import Result
from florence.types.tasks import TASKS, Input, Task, TaskTable
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
    parameters: GenerationParameters
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
class Prepared:
    """What is needed of a request to make its answer; without the pixels. `image_size`: width and height."""

    task: Task
    image_size: tuple[int, int]
    wanted: ItemFilter
    prompt_tokens: int
    seed: int | None
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Turns pictures and tasks into requests, and generations into answers, for one checkpoint.

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
    max_tiles: int = MOST_TILES

    @property
    def tasks(self) -> TaskTable:
        """The tasks of the checkpoint and of the adapters."""
        return self.adapters.table

    def described(self) -> dict[str, Any]:
        """The part of `info` about adapters and tasks."""
        own = [task for task in self.tasks.values() if task.token not in TASKS]
        return {
            "adapters": [each.model_dump(mode="json") for each in self.adapters.infos],
            "tasks": list(self.tasks),
            "declared_tasks": [DeclaredTask.of(task).model_dump(mode="json") for task in own],
        }

    def check(self, request: TaskRequest) -> CheckedTask:
        """All checks that need no picture. Raises `TaskError` and `OptionError`."""
        if request.text is not None and request.region is not None:
            raise TaskError("both text and region are given; a task takes one of them")
        if request.timeout_s is not None and not 0 < request.timeout_s < float("inf"):
            raise OptionError(f"timeout_s must be a number of seconds above 0, got {request.timeout_s!r}")
        task = self.tasks.resolve(request.task)
        options = self.options(request.parameters, task)
        given = request.text if request.region is None else request.region
        self.tasks.check_input(task, given)
        if request.on_text is not None:
            _check_streamed(task, options)
        asked = request.parameters
        if isinstance(asked, TileOptions) and asked.tiled:
            self._check_tiled(task, asked, streamed=request.on_text is not None)
        wanted = asked if isinstance(asked, ItemFilter) else ItemFilter()
        adapter = self.adapters.find(asked.adapter if isinstance(asked, AdapterOption) else None, task)
        return CheckedTask(task, given, options, wanted, adapter)

    def prepare(
        self,
        checked: CheckedTask,
        picture: ReadPicture,
        deadline: float | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> tuple[Request, Prepared]:
        """The engine's request, and what the answer needs of it. `deadline`: by the engine's clock;
        `on_token`: as in `engine.Request`.

        Raises `RegionError` for a region that is malformed or outside the picture.
        """
        text = checked.given
        if text is not None:
            text = region_text(text, picture.size) if checked.task.input is Input.REGION else str(text)
        prompt = self.tasks.build_prompt(checked.task, text)
        request = Request(
            pixels=picture.pixels,
            prompt_ids=tuple(self.tokenizer.encode(prompt)),
            options=checked.options,
            deadline=deadline,
            on_token=on_token,
            digest=picture.digest,
            adapter=checked.adapter,
        )
        adapter = None if checked.adapter is None else checked.adapter.name
        told = len(request.prompt_ids), checked.options.seed, adapter
        return request, Prepared(checked.task, picture.size, checked.wanted, *told)

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

    def answer(self, prepared: Prepared, generation: Generation, total_s: float) -> Answer:
        """The typed answer for a generation, `total_s` seconds after the request arrived."""
        token_ids = list(generation.token_ids)
        width, height = prepared.image_size
        result = self.result(prepared, generation)
        return Answer.of(
            prepared.task,
            result=result if prepared.wanted.is_off else keep_items(result, prepared.wanted),
            image_size=ImageSize(width=width, height=height),
            **self.facts(prepared, generation, total_s),
            raw_text=self.tokenizer.decode(token_ids),
            token_ids=token_ids,
            token_logprobs=list(generation.token_logprobs),
        )

    def original_answer(self, prepared: Prepared, generation: Generation, total_s: float) -> OriginalAnswer:
        """The same in the original's shape only. Raises `RequestError` as `Answer.florence`."""
        raw_text = self.tokenizer.decode(list(generation.token_ids))
        original = post_process_text(prepared.task, raw_text, prepared.image_size)
        if not prepared.wanted.is_off:
            scored = self.result(prepared, generation)
            original = keep_original_items(original, scored, prepared.wanted)
        facts = self.facts(prepared, generation, total_s)
        return OriginalAnswer(task=prepared.task.token, text=json.dumps(original), **facts)

    def result(self, prepared: Prepared, generation: Generation) -> Result:
        """The typed result with scores, before filtering."""
        windows = generation.token_windows
        return parse_answer(
            prepared.task,
            self.tokenizer.decode(list(generation.token_ids)),
            image_size=prepared.image_size,
            pieces=[Piece(*piece) for piece in self.tokenizer.pieces(list(generation.token_ids))],
            # The start token is not generated, so its log-probability is 0.
            token_logprobs=[0.0, *generation.token_logprobs],
            token_windows=[(), *windows] if windows else (),
            temperature=self.score_temperature,
        ).result

    def facts(self, prepared: Prepared, generation: Generation, total_s: float) -> dict[str, Any]:
        """The fields that both kinds of answers have."""
        adapter = prepared.adapter
        return {
            "finish_reason": generation.finish_reason,
            "usage": Usage(
                picture_tokens=generation.picture_tokens,
                prompt_tokens=prepared.prompt_tokens,
                generated_tokens=len(generation.token_logprobs),
            ),
            "timings": Timings(**asdict(generation.timings), total_s=total_s),
            "checkpoint": self.checkpoint if adapter is None else f"{self.checkpoint} + {adapter}",
            "seed": prepared.seed,
        }

    def _check_tiled(self, task: Task, asked: TileOptions, *, streamed: bool) -> None:
        if not task.in_tiles:
            able = ", ".join(each.token for each in self.tasks.values() if each.in_tiles)
            raise TaskError(f"{task.token} can't be asked in tiles; leave tiles out, or ask one of {able}")
        if streamed:
            raise OptionError("an answer of tiles is merged when all are done, so it can't be streamed")
        columns, rows = asked.grid or (1, 1)
        if columns * rows > self.max_tiles:
            raise OptionError(
                f"tiles={asked.tiles} are {columns * rows} tiles; up to {self.max_tiles} are allowed "
                "(FLORENCE_MAX_TILES)"
            )


def _check_streamed(task: Task, options: GenerationOptions) -> None:
    if not task.kind.is_text:
        raise TaskError(f"{task.token} does not answer in text, so there is nothing to stream")
    if options.num_beams != 1:
        raise OptionError(
            f"a stream needs num_beams=1, this request has {options.num_beams}: beams compete until the last "
            "token, so no part of the answer is final before all of it is"
        )
