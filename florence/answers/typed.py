"""Typed results from a generated text, without the quirks of the original's parser.

Labels keep all their characters, `<`, newlines and non-ASCII letters too. Locations that make no whole box,
quad or polygon of three points are left out. Phrase grounding drops the same stop phrases as the original,
pronouns and the like, since they name nothing visible. Coordinates are pixels in double precision, the
middle of each bin. Any text can be parsed, in linear time. Knows nothing about tokenizers or tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from florence.answers.json_text import read_json
from florence.answers.lexemes import PADDING, STOP_PHRASES, Lexeme, LexemeKind, Scorer, read_lexemes
from florence.export.annotation import box_polygon
from florence.types.regions import PictureSize, locations_to_pixels
from florence.types.results import (
    Detection,
    Detections,
    Instance,
    JsonValue,
    OcrRegion,
    OcrRegions,
    Result,
    Segmentation,
    Tags,
    Text,
)
from florence.types.tasks import Kind, Task

_FEWEST_LOCATIONS = 6  # of a polygon: less than three points enclose nothing
_PADDING = re.compile("|".join(PADDING))


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive locations, cut at each `<sep>`, with the text before them.

    enclosed: whether a `<poly>` opens the group.
    """

    text: str
    enclosed: bool
    parts: list[list[Lexeme]]


def parse_result(task: Task | None, text: str, image_size: PictureSize, scorer: Scorer) -> Result:
    """The task's typed result; without a task, plain text.

    image_size: (width, height), needed where the text holds a box, quad or polygon: RequestError without.
    """
    if task is None or task.kind.is_text:
        return _text_result(Kind.TEXT if task is None else task.kind, text, scorer)
    if task.kind is Kind.QUADS:
        return _ocr_regions(text, image_size, scorer)
    if task.kind is Kind.POLYGONS or (task.kind is Kind.BOXES_OR_POLYGONS and "<poly>" in text):
        return _segmentation(text, image_size, scorer, labelled=task.labelled)
    found = _detections(text, image_size, scorer, labelled=task.labelled)
    dropped = STOP_PHRASES if task.drops_stop_phrases else ()
    return Detections(detections=[each for each in found if each.label not in dropped])


def _text_result(kind: Kind, text: str, scorer: Scorer) -> Text | Tags | JsonValue:
    text, score = _PADDING.sub("", text).strip(), scorer.score_text()
    if kind is Kind.TAGS:
        tags = [tag for part in text.split(",") if (tag := part.strip())]
        return Tags(tags=tags, text=text, score=score)
    if kind is Kind.JSON:
        value, error = read_json(text)
        return JsonValue(value=value, text=text, error=error, score=score)
    return Text(text=text, score=score)


def _detections(text: str, image_size: PictureSize, scorer: Scorer, *, labelled: bool) -> list[Detection]:
    found = []
    for label, group in _label_groups(text):
        for (x1, y1, x2, y2), score in _chunks(group, 4, image_size, scorer):
            found.append(Detection(label=label if labelled else "", box=(x1, y1, x2, y2), score=score))
    return found


def _ocr_regions(text: str, image_size: PictureSize, scorer: Scorer) -> OcrRegions:
    """A second quad without text of its own has none: unlike a label, a text belongs to one quad."""
    regions = []
    for group in _read_groups(text):
        content = group.text
        for (x1, y1, x2, y2, x3, y3, x4, y4), score in _chunks(group, 8, image_size, scorer):
            regions.append(OcrRegion(text=content, quad=(x1, y1, x2, y2, x3, y3, x4, y4), score=score))
            content = ""
    return OcrRegions(regions=regions)


def _segmentation(text: str, image_size: PictureSize, scorer: Scorer, *, labelled: bool) -> Segmentation:
    """labelled: things have labels, and groups without `<poly>` are boxes, given as their four corners."""
    instances = []
    for label, group in _label_groups(text):
        if labelled and not group.enclosed:
            for (x1, y1, x2, y2), score in _chunks(group, 4, image_size, scorer):
                corners = box_polygon((x1, y1, x2, y2))
                instances.append(Instance(label=label, polygons=[corners], score=score))
            continue
        whole = [part[: len(part) // 2 * 2] for part in group.parts]
        polygons = [part for part in whole if len(part) >= _FEWEST_LOCATIONS]
        if polygons:
            score = scorer.score_locations([location for polygon in polygons for location in polygon])
            outlines = [_pixels(polygon, image_size) for polygon in polygons]
            instances.append(Instance(label=label if labelled else "", polygons=outlines, score=score))
    return Segmentation(instances=instances)


def _label_groups(text: str) -> Iterator[tuple[str, _Group]]:
    """Each group with its label; a group without text of its own has the previous label."""
    label = ""
    for group in _read_groups(text):
        label = group.text or label
        yield label, group


def _read_groups(text: str) -> Iterator[_Group]:
    before: list[str] = []
    parts: list[list[Lexeme]] = [[]]
    enclosed = False
    for lexeme in read_lexemes(text):
        if lexeme.kind is LexemeKind.LOCATION:
            parts[-1].append(lexeme)
        elif lexeme.text == "<sep>":
            parts.append([])
        else:
            if any(parts):
                yield _Group("".join(before).strip(), enclosed, parts)
                before = []
            parts, enclosed = [[]], lexeme.text == "<poly>"
            if lexeme.kind is LexemeKind.TEXT:
                before.append(lexeme.text)
    if any(parts):
        yield _Group("".join(before).strip(), enclosed, parts)


def _chunks(
    group: _Group, size: int, image_size: PictureSize, scorer: Scorer
) -> Iterator[tuple[list[float], float | None]]:
    """Pixels and score of each whole `size` locations of each part."""
    for part in group.parts:
        for first in range(0, len(part) - size + 1, size):
            chunk = part[first : first + size]
            yield _pixels(chunk, image_size), scorer.score_locations(chunk)


def _pixels(locations: Sequence[Lexeme], image_size: PictureSize) -> list[float]:
    return locations_to_pixels([location.bin for location in locations], image_size)
