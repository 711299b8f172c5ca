"""A task on a picture that is cut into tiles: an engine request for each tile, and one answer for all.

Joins `pipeline`, which makes requests and answers for single pictures, and `answers.tiled`, which merges
results. Knows nothing about threads, devices or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from florence.answers.answer import Answer, OriginalAnswer
from florence.answers.filtering import keep_items
from florence.answers.original_form import original_form
from florence.answers.tiled import TileResult, merge_results, text_of
from florence.engine.request import Generation, Request
from florence.readers.picture import ReadPicture
from florence.runtime.pipeline import CheckedTask, Pipeline, Prepared
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.results import OcrRegions, Result, Text


@dataclass(frozen=True, slots=True)
class PreparedTiles:
    """What is needed to make the answer. `image_size`: width and height of the whole picture. `corners`: each
    tile's left and top, in pixels; `tiles`: each tile's own `Prepared`."""

    asked: CheckedTask
    image_size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    tiles: tuple[Prepared, ...]


AnyPrepared = Prepared | PreparedTiles


def prepare(
    pipeline: Pipeline,
    checked: CheckedTask,
    picture: ReadPicture,
    deadline: float | None,
    on_token: Callable[[int], None] | None,
) -> tuple[list[Request], AnyPrepared]:
    """The engine's requests for a picture, one if it is not cut. Arguments and errors are those of
    `Pipeline.prepare`."""
    if not picture.tiles:
        request, prepared = pipeline.prepare(checked, picture, deadline, on_token)
        return [request], prepared
    for_tile = replace(checked, task=pipeline.tasks.resolve(checked.task.in_tiles))
    made = [pipeline.prepare(for_tile, tile, deadline) for tile in picture.tiles]
    corners = tuple(tile.corner for tile in picture.tiles)
    prepared_tiles = tuple(prepared for _, prepared in made)
    return [request for request, _ in made], PreparedTiles(checked, picture.size, corners, prepared_tiles)


def answer(
    pipeline: Pipeline,
    asked: AnyPrepared,
    generations: Sequence[Generation],
    total_s: float,
    *,
    original: bool,
) -> Answer | OriginalAnswer:
    """The answer from the generation of each request. `original`: in the original's shape only.

    Raises `RequestError` as `Answer.florence`.
    """
    if isinstance(asked, Prepared):
        make: Any = pipeline.original_answer if original else pipeline.answer
        made: Answer | OriginalAnswer = make(asked, generations[0], total_s)
        return made
    task, wanted = asked.asked.task, asked.asked.wanted
    result = _merged(pipeline, asked, generations)
    result = result if wanted.is_off else keep_items(result, wanted)
    facts = _facts(pipeline, asked, generations, total_s)
    if original:
        text = json.dumps({task.token: original_form(task, result)})
        return OriginalAnswer(task=task.token, text=text, **facts)
    width, height = asked.image_size
    return Answer.of(
        task,
        result=result,
        image_size=ImageSize(width=width, height=height),
        **facts,
        raw_text="\n".join(pipeline.tokenizer.decode(list(each.token_ids)) for each in generations),
        token_ids=[token for each in generations for token in each.token_ids],
        token_logprobs=[logprob for each in generations for logprob in each.token_logprobs],
    )


def _merged(pipeline: Pipeline, asked: PreparedTiles, generations: Sequence[Generation]) -> Result:
    tiles = []
    for (left, top), prepared, generation in zip(asked.corners, asked.tiles, generations, strict=True):
        width, height = prepared.image_size
        result = pipeline.result(prepared, generation)
        tiles.append(TileResult((left, top, left + width, top + height), result))
    merged = merge_results(tiles, asked.image_size)
    if asked.asked.task.kind.is_text and isinstance(merged, OcrRegions):
        return Text(text=text_of(merged))
    return merged


def _facts(
    pipeline: Pipeline, asked: PreparedTiles, generations: Sequence[Generation], total_s: float
) -> dict[str, Any]:
    """The facts of the answer: token counts summed over tiles; times of the tile that was done last."""
    each = [
        pipeline.facts(prepared, generation, total_s)
        for prepared, generation in zip(asked.tiles, generations, strict=True)
    ]
    usages: list[Usage] = [facts["usage"] for facts in each]
    return {
        **each[0],
        "finish_reason": "length" if any(one["finish_reason"] == "length" for one in each) else "stop",
        "usage": Usage(
            **{name: sum(getattr(usage, name) for usage in usages) for name in Usage.model_fields}
        ),
        "timings": Timings(**asdict(last_of(generations).timings), total_s=total_s),
        "tiles": len(each),
    }


def last_of(generations: Sequence[Generation]) -> Generation:
    """The generation that took longest, among requests submitted together."""

    def seconds(generation: Generation) -> float:
        timings = generation.timings
        return timings.queue_s + timings.encode_s + timings.decode_s

    return max(generations, key=seconds)
