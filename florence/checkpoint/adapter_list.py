"""Reads the list of a service's adapters, from settings or a file: each one's name and source.

Knows text; knows nothing about the contents of adapters. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from florence.errors import SettingsError, quote

AdapterSources = Mapping[str, str] | Path
"""Name -> hub id or directory; or the path of a file with a line `name=source` for each adapter."""

_ENTRY: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(.+)")


def adapters_of_settings(inline: str | None, file: Path | None) -> AdapterSources | None:
    """The adapters of FLORENCE_ADAPTERS (`inline`) or FLORENCE_ADAPTERS_FILE (`file`); None for neither.
    Raises `SettingsError`."""
    if inline and file:
        raise SettingsError("set FLORENCE_ADAPTERS or FLORENCE_ADAPTERS_FILE, not both")
    return _read_entries(inline.split(","), "FLORENCE_ADAPTERS") if inline else file


def list_adapters(sources: AdapterSources, maximum: int) -> Mapping[str, str]:
    """Name -> source of each adapter. Raises `SettingsError` for a malformed entry, a duplicate name, more
    than `maximum` adapters, and a file that can't be read."""
    found: Mapping[str, str]
    if isinstance(sources, Path):
        try:
            lines = sources.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"FLORENCE_ADAPTERS_FILE can't be read: {error}") from error
        found = _read_entries(lines, f"FLORENCE_ADAPTERS_FILE ({sources})")
    else:
        found = _read_entries((f"{name}={source}" for name, source in sources.items()), "adapters")
    if len(found) > maximum:
        raise SettingsError(
            f"{len(found)} adapters are listed; at most {maximum} are allowed (FLORENCE_MAX_ADAPTERS)"
        )
    return found


def _read_entries(lines: Iterable[str], where: str) -> dict[str, str]:
    """The entries `name=source`; empty lines, and lines that start with #, are skipped."""
    found: dict[str, str] = {}
    for line in lines:
        if not (line := line.strip()) or line.startswith("#"):
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise SettingsError(
                f"{where}: {quote(line)} must be name=source, the name of letters, digits, dots, - and _ "
                "(64 at most), the source a hub id or a directory"
            )
        name, source = entry[1], entry[2].strip()
        if name in found:
            raise SettingsError(f"{where}: the adapter {name!r} is listed twice")
        found[name] = source
    return found
