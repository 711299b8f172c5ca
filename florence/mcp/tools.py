"""The tools: their names, what agents read about them, and which task each call asks.

Knows tasks and arguments; nothing about MCP's messages or about what answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from florence.bulk.question import PictureQuestion
from florence.errors import RequestError
from florence.mcp.arguments import (
    DescribeArguments,
    FindArguments,
    PictureArguments,
    ReadArguments,
    RegionArguments,
    SegmentArguments,
)
from florence.types.options import read_request_parameters
from florence.types.tasks import TASKS
from florence.types.tiling import OFF

_CAPTIONS: Final = MappingProxyType(
    {"short": "caption", "detailed": "detailed_caption", "paragraph": "more_detailed_caption"}
)
OF_REGION: Final = MappingProxyType(
    {"category": "region_to_category", "description": "region_to_description", "text": "region_to_ocr"}
)


@dataclass(frozen=True, slots=True)
class PictureTool:
    """One tool. `description`: for the model that chooses among tools. `question`: makes the question from a
    call's arguments; raises RequestError."""

    name: str
    description: str
    arguments: type[PictureArguments]
    question: Callable[[Any], PictureQuestion]


def _describe(given: DescribeArguments) -> PictureQuestion:
    return PictureQuestion(TASKS.resolve(_CAPTIONS[given.detail]))


def _find(given: FindArguments) -> PictureQuestion:
    options = _options(tiles=given.tiles, min_score=given.min_score)
    if not given.what.strip():
        if given.each_phrase:
            raise RequestError("each_phrase needs a sentence in what")
        return PictureQuestion(TASKS.resolve("object_detection"), options=options)
    name = "caption_to_phrase_grounding" if given.each_phrase else "open_vocabulary_detection"
    return PictureQuestion(TASKS.resolve(name), given.what, options=options)


def _read(given: ReadArguments) -> PictureQuestion:
    name = "ocr_with_region" if given.places else "ocr"
    return PictureQuestion(TASKS.resolve(name), options=_options(tiles=given.tiles))


def _segment(given: SegmentArguments) -> PictureQuestion:
    if (given.what is None) == (given.region is None):
        raise RequestError("segment needs either what, in words, or region")
    if given.region is not None:
        return PictureQuestion(TASKS.resolve("region_to_segmentation"), region=_pixels(given.region))
    return PictureQuestion(TASKS.resolve("referring_expression_segmentation"), given.what)


def _ask_region(given: RegionArguments) -> PictureQuestion:
    task = TASKS.resolve(OF_REGION[given.question])
    return PictureQuestion(task, region=_pixels(given.region))


def _options(**options: Any) -> Mapping[str, Any]:
    """The options that are neither None nor off, checked. Raises OptionError."""
    given = {name: value for name, value in options.items() if value not in (None, OFF)}
    return read_request_parameters(given).model_dump(exclude_none=True)


def _pixels(region: Sequence[float]) -> str:
    return ", ".join(map(repr, region))


TOOLS: Final = (
    PictureTool("describe", "Describe a picture in words.", DescribeArguments, _describe),
    PictureTool(
        "find",
        "Find things in a picture: boxes in pixels with labels and scores. Looks for what you name, or for "
        "all objects.",
        FindArguments,
        _find,
    ),
    PictureTool("read", "Read the text in a picture (OCR).", ReadArguments, _read),
    PictureTool("segment", "Outline one thing in a picture: polygons in pixels.", SegmentArguments, _segment),
    PictureTool("ask_region", "Say what is in one region of a picture.", RegionArguments, _ask_region),
)
"""In the order in which agents see them."""
