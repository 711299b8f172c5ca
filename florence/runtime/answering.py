"""Makes the answer of a request from what the engine generated for it: for its picture, or for each tile.

Knows texts, results and figures; knows nothing about threads, devices or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from florence.answers import Piece, parse_answer
from florence.answers.answer import Answer, OriginalAnswer
from florence.answers.filtering import keep_items, keep_original_items
from florence.answers.original import post_process_text
from florence.answers.original_form import original_form
from florence.answers.tiled import TileResult, merge_results, text_of
from florence.engine.request import Generation
from florence.runtime.pipeline import Pipeline, Prepared, PreparedTile
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.results import OcrRegions, Result, Text


def typed_answer(
    pipeline: Pipeline, prepared: Prepared, generations: Sequence[Generation], total_s: float
) -> Answer:
    """The typed answer, `total_s` seconds after the request arrived. `generations`: one for each tile."""
    width, height = prepared.image_size
    return Answer.of(
        prepared.asked.task,
        result=_kept(pipeline, prepared, generations),
        image_size=ImageSize(width=width, height=height),
        **_facts(pipeline, prepared, generations, total_s),
        raw_text="\n".join(pipeline.tokenizer.decode(list(each.token_ids)) for each in generations),
        token_ids=[token for each in generations for token in each.token_ids],
        token_logprobs=[logprob for each in generations for logprob in each.token_logprobs],
    )


def original_answer(
    pipeline: Pipeline, prepared: Prepared, generations: Sequence[Generation], total_s: float
) -> OriginalAnswer:
    """The same in the original's shape only. Raises `RequestError` as `Answer.florence`."""
    task, wanted = prepared.asked.task, prepared.asked.wanted
    if len(generations) > 1:
        original = {task.token: original_form(task, _kept(pipeline, prepared, generations))}
    else:
        raw_text = pipeline.tokenizer.decode(list(generations[0].token_ids))
        original = post_process_text(task, raw_text, prepared.image_size)
        if not wanted.is_off:
            original = keep_original_items(original, _found(pipeline, prepared, generations), wanted)
    facts = _facts(pipeline, prepared, generations, total_s)
    return OriginalAnswer(task=task.token, text=json.dumps(original), **facts)


def last_of(generations: Sequence[Generation]) -> Generation:
    """The generation that took longest, among requests submitted together."""
    return max(generations, key=lambda each: sum(astuple(each.timings)))


def _kept(pipeline: Pipeline, prepared: Prepared, generations: Sequence[Generation]) -> Result:
    """The typed result with the wanted items."""
    result, wanted = _found(pipeline, prepared, generations), prepared.asked.wanted
    return result if wanted.is_off else keep_items(result, wanted)


def _found(pipeline: Pipeline, prepared: Prepared, generations: Sequence[Generation]) -> Result:
    """The typed result with all items."""
    pairs = list(zip(prepared.tiles, generations, strict=True))
    if len(pairs) == 1:
        return _parsed(pipeline, *pairs[0])
    tiles = []
    for tile, generation in pairs:
        (left, top), (width, height) = tile.corner, tile.size
        frame = left, top, left + width, top + height
        tiles.append(TileResult(frame, _parsed(pipeline, tile, generation)))
    merged = merge_results(tiles, prepared.image_size)
    if prepared.asked.task.kind.is_text and isinstance(merged, OcrRegions):
        return Text(text=text_of(merged))
    return merged


def _parsed(pipeline: Pipeline, tile: PreparedTile, generation: Generation) -> Result:
    """The typed result of one tile, with scores."""
    token_ids, windows = list(generation.token_ids), generation.token_windows
    return parse_answer(
        tile.task,
        pipeline.tokenizer.decode(token_ids),
        image_size=tile.size,
        pieces=[Piece(*piece) for piece in pipeline.tokenizer.pieces(token_ids)],
        # The start token is not generated, so its log-probability is 0.
        token_logprobs=[0.0, *generation.token_logprobs],
        token_windows=[(), *windows] if windows else (),
        temperature=pipeline.score_temperature,
    ).result


def _facts(
    pipeline: Pipeline, prepared: Prepared, generations: Sequence[Generation], total_s: float
) -> dict[str, Any]:
    """The fields that both kinds of answers have: token counts summed over tiles, times of the tile that was
    done last."""
    adapter = prepared.asked.adapter
    ends = [generation.finish_reason for generation in generations]
    return {
        "finish_reason": "length" if "length" in ends else "stop",
        "usage": Usage(
            picture_tokens=sum(generation.picture_tokens for generation in generations),
            prompt_tokens=sum(tile.prompt_tokens for tile in prepared.tiles),
            generated_tokens=sum(len(generation.token_logprobs) for generation in generations),
        ),
        "timings": Timings(**asdict(last_of(generations).timings), total_s=total_s),
        "checkpoint": pipeline.checkpoint if adapter is None else f"{pipeline.checkpoint} + {adapter.name}",
        "seed": prepared.asked.options.seed,
        "tiles": len(generations),
    }
