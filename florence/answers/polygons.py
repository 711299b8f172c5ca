"""The original's reading of polygons in a text: labels, instances, and the runs of locations in each.

Part of `original`; linear in the length of the text. Knows nothing about pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

LOCATION: Final = r"<loc_\d+>"  # any number of any script's digits, as the original reads them

_TOKEN = rf"(?:{LOCATION}|<sep>|<poly>|</poly>)"
_BARE = re.compile(f"{_TOKEN}{{4,}}")
_LABELLED = re.compile(f"[^<]+({_TOKEN}{{4,}})?")
_POLYGON = re.compile(rf"((?:{LOCATION})+)(<sep>|\Z)?")
_LABEL_STOP = re.compile("<loc_|<poly>")
_REST_OF_LOCATION = re.compile(r"loc_\d+>")


def read_polygons(text: str, *, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """Each instance's label and its runs of locations, one run for each polygon.

    text: without `<s>`, `</s>` and `<pad>`. labelled: whether a group needs a text before it, its label.
    """
    for group in _read_groups(text, labelled=labelled):
        stop = _LABEL_STOP.search(group)
        if stop is None or "\n" in group[: stop.start()].lstrip():
            continue
        label = group[: stop.start()].strip()
        for instance in _read_instances(group):
            runs = [match.group(1) for match in _POLYGON.finditer(instance) if match.group(2) is not None]
            if runs:
                yield label, runs


def _read_groups(text: str, *, labelled: bool) -> Iterator[str]:
    if not labelled:
        yield from (match.group() for match in _BARE.finditer(text))
        return
    for match in _LABELLED.finditer(text):
        if match.group(1) is not None:
            stray = _REST_OF_LOCATION.match(match.group())  # of a location that stood before the label
            yield match.group()[stray.end() if stray else 0 :]


def _read_instances(group: str) -> Iterator[str]:
    """The text between each `<poly>` and the next `</poly>`; the whole group unless it holds both."""
    if "<poly>" not in group or "</poly>" not in group:
        yield group
        return
    start = group.find("<poly>")
    while start >= 0:
        stop = group.find("</poly>", start)
        if stop < 0:
            return
        yield group[start + len("<poly>") : stop]
        start = group.find("<poly>", stop)
