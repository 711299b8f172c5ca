"""What commands say to a person, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from florence.bulk.sources import Sources


def tell_lines(lines: Iterable[str]) -> None:
    """Each as a message of this program."""
    for line in lines:
        print(f"florence: {line}", file=sys.stderr)


def list_pictures(names: Sequence[str]) -> list[str]:
    """The files of this machine that the names mean, each once, in their order; says what was passed over.

    Raises RequestError where one names no picture."""
    sources = Sources(names)
    found = dict.fromkeys(item.picture for item in sources.items())
    tell_lines(sources.passed.lines())
    return list(found)
