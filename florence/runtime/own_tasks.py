"""Finds a checkpoint's own tasks: those that a setting names, or the file beside the checkpoint.

Knows files; `types.declared` has the rows and the presets.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from florence.checkpoint.hub import resolve_checkpoint
from florence.errors import CheckpointError, SettingsError, quote
from florence.settings import Settings
from florence.types.declared import PRESETS, TASKS_FILE, TaskRow, declare, read_rows
from florence.types.tasks import Task


def own_tasks(named: str | None, directory: Path) -> list[Task]:
    """The tasks that `named` (FLORENCE_TASKS) says: files and presets, separated by commas. None:
    `florence_tasks.json` in the checkpoint's directory, where there is one.

    Raises SettingsError for what can't be read, and one that names all rows which are wrong.
    """
    if named is None:
        beside = directory / TASKS_FILE
        return declare(_read(beside)) if beside.is_file() else []
    parts = [part.strip() for part in named.split(",")]
    return declare([row for part in parts if part for row in _rows_of(part)])


def tasks_of_settings(settings: Settings) -> list[Task]:
    """The own tasks of the checkpoint that the settings name, before it is loaded; none where it can't be
    found."""
    folder = Path()
    if settings.tasks is None:
        try:
            folder = resolve_checkpoint(settings.model, settings.revision, settings.base).directory
        except CheckpointError:
            return []  # loading it will say why
    return own_tasks(settings.tasks, folder)


def _rows_of(part: str) -> list[TaskRow]:
    if part in PRESETS:
        return [(f"preset {part}", row) for row in PRESETS[part]]
    if Path(part).is_file():
        return _read(Path(part))
    close = get_close_matches(part.lower(), PRESETS, n=1)
    hint = f"did you mean {close[0]}? The" if close else "the"
    raise SettingsError(
        f"FLORENCE_TASKS: {quote(part)} is neither a file nor a preset; {hint} presets are "
        f"{', '.join(PRESETS)}"
    )


def _read(file: Path) -> list[TaskRow]:
    try:
        return read_rows(file.read_text(encoding="utf-8-sig"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} can't be read: {error}") from None
