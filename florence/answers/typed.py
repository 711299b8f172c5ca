"""Typed results from a generated text, without the quirks of the original's parser.

Labels keep all characters, including `<`, newlines and non-ASCII letters. Locations that don't make up a
complete box, quad or polygon of at least three points are left out. Phrase grounding drops the same stop
phrases as the original, such as pronouns, since they name nothing visible. Corners of boxes are sorted: x1 <=
x2 and y1 <= y2. Coordinates are pixels in double precision, the middle of each bin. Any text can be parsed,
in linear time. Knows nothing about tokenizers or tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from florence.answers.json_text import read_json
from florence.answers.lexemes import PADDING, STOP_PHRASES, Lexeme, LexemeKind, read_lexemes
from florence.answers.scorer import Scorer
from florence.export.geometry import Box, box_polygon
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
    split_tags,
)
from florence.types.tasks import Kind, Task

_MIN_LOCATIONS = 6  # of a polygon: fewer than three points enclose nothing
_PADDING = re.compile("|".join(PADDING))


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive locations, cut at each `<sep>`, with the texts before them.

    `enclosed`: whether `<poly>` opens the group.
    """

    before: list[Lexeme]
    enclosed: bool
    parts: list[list[Lexeme]]

    @property
    def text(self) -> str:
        return "".join(lexeme.text for lexeme in self.before).strip()


def parse_result(task: Task | None, text: str, image_size: PictureSize, scorer: Scorer) -> Result:
    """The task's typed result; without a task, plain text.

    `image_size`: (width, height), needed where the text contains a box, quad or polygon; else `RequestError`.
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
        return Tags(tags=split_tags(text), text=text, score=score)
    if kind is Kind.JSON:
        value, error = read_json(text)
        return JsonValue(value=value, text=text, error=error, score=score)
    return Text(text=text, score=score)


def _detections(text: str, image_size: PictureSize, scorer: Scorer, *, labelled: bool) -> list[Detection]:
    found = []
    for label, named, group in _label_groups(text):
        for four in _chunks(group, 4):
            scores, box = scorer.score_box(four, named if labelled else ()), _box(four, image_size)
            found.append(Detection(label=label if labelled else "", box=box, **scores.fields()))
    return found


def _ocr_regions(text: str, image_size: PictureSize, scorer: Scorer) -> OcrRegions:
    """A quad without text of its own gets an empty one: unlike a label, a text belongs to one quad only."""
    regions = []
    for group in _read_groups(text):
        content, named = group.text, group.before
        for eight in _chunks(group, 8):
            x1, y1, x2, y2, x3, y3, x4, y4 = _pixels(eight, image_size)
            quad, scores = (x1, y1, x2, y2, x3, y3, x4, y4), scorer.score_outlines([eight], named)
            regions.append(OcrRegion(text=content, quad=quad, **scores.fields()))
            content, named = "", []
    return OcrRegions(regions=regions)


def _segmentation(text: str, image_size: PictureSize, scorer: Scorer, *, labelled: bool) -> Segmentation:
    """`labelled`: things have labels, and groups without `<poly>` are boxes, converted to their four
    corners."""
    instances = []
    for label, named, group in _label_groups(text):
        if labelled and not group.enclosed:
            for four in _chunks(group, 4):
                corners, scores = box_polygon(_box(four, image_size)), scorer.score_box(four, named)
                instances.append(Instance(label=label, polygons=[corners], **scores.fields()))
            continue
        whole = [part[: len(part) // 2 * 2] for part in group.parts]
        polygons = [part for part in whole if len(part) >= _MIN_LOCATIONS]
        if polygons:
            scores = scorer.score_outlines(polygons, named if labelled else ())
            outlines = [_pixels(polygon, image_size) for polygon in polygons]
            shown = label if labelled else ""
            instances.append(Instance(label=shown, polygons=outlines, **scores.fields()))
    return Segmentation(instances=instances)


def _label_groups(text: str) -> Iterator[tuple[str, list[Lexeme], _Group]]:
    """Each group with its label and the label's lexemes; a group without text of its own has the previous
    label."""
    label, named = "", list[Lexeme]()
    for group in _read_groups(text):
        if group.text:
            label, named = group.text, group.before
        yield label, named, group


def _read_groups(text: str) -> Iterator[_Group]:
    before: list[Lexeme] = []
    parts: list[list[Lexeme]] = [[]]
    enclosed = False
    for lexeme in read_lexemes(text):
        if lexeme.kind is LexemeKind.LOCATION:
            parts[-1].append(lexeme)
        elif lexeme.text == "<sep>":
            parts.append([])
        else:
            if any(parts):
                yield _Group(before, enclosed, parts)
                before = []
            parts, enclosed = [[]], lexeme.text == "<poly>"
            if lexeme.kind is LexemeKind.TEXT:
                before.append(lexeme)
    if any(parts):
        yield _Group(before, enclosed, parts)


def _chunks(group: _Group, size: int) -> Iterator[list[Lexeme]]:
    """Each complete run of `size` locations in each part."""
    for part in group.parts:
        for first in range(0, len(part) - size + 1, size):
            yield part[first : first + size]


def _box(four: Sequence[Lexeme], image_size: PictureSize) -> Box:
    """Left, top, right, bottom; sorted, since the model may write the corners in another order."""
    x1, y1, x2, y2 = _pixels(four, image_size)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _pixels(locations: Sequence[Lexeme], image_size: PictureSize) -> list[float]:
    return locations_to_pixels([location.bin for location in locations], image_size)
