"""The commands' messages to their user, on stderr, and a status that several have."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from florence.bulk.sources import Sources

SOME_FAILED: Final = 3
"""The exit status where some of many failed."""


def tell_lines(lines: Iterable[str]) -> None:
    """Print each as a message of this program."""
    for line in lines:
        print(f"florence: {line}", file=sys.stderr)


def list_pictures(names: Sequence[str]) -> list[str]:
    """The files that the names stand for, each once, in order; prints which were skipped.

    Raises RequestError where a name stands for no picture.
    """
    sources = Sources(names)
    found = dict.fromkeys(item.picture for item in sources.items())
    tell_lines(sources.skipped.lines())
    return list(found)
