"""Describes a result as lines of text, for people or for programs that read text. Knows nothing about
pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from florence.types.results import JsonValue, Result, Tags, Text


def describe(result: Result) -> Iterator[str]:
    """The lines: the text, or score, label and pixels of each item."""
    if isinstance(result, Text):
        yield result.text
    elif isinstance(result, Tags):
        yield from result.tags
    elif isinstance(result, JsonValue):
        yield result.text if result.error else json.dumps(result.value, indent=2, ensure_ascii=False)
    for found in result.annotations():
        boxes = ((*polygon[:2], *polygon[4:6]) for polygon in found.polygons)  # two corners of the four
        yield _line(found.score, found.label, [*boxes] if found.shape == "box" else found.polygons)


def _line(score: float | None, label: str, places: Sequence[Sequence[float]]) -> str:
    pixels = "; ".join(" ".join(f"{value:.1f}" for value in place) for place in places)
    return "  ".join(part for part in ("" if score is None else f"{score:.2f}", label, pixels) if part)
