"""Finds a checkpoint's own tasks: those that a setting names, or those in the file beside the checkpoint.

Knows files; the format of rows and the presets are in `types.declared`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from florence.checkpoint.adapter_list import adapters_of_settings, list_adapters
from florence.checkpoint.hub import resolve_adapter, resolve_checkpoint
from florence.errors import CheckpointError, SettingsError, quote, words_of
from florence.settings import Settings
from florence.types.declared import PRESETS, TASKS_FILE, TaskRow, declare, read_rows
from florence.types.tasks import Task


def own_tasks(named: str | None, *directories: Path) -> list[Task]:
    """The tasks that `named` (FLORENCE_TASKS) lists: files and presets, separated by commas. None: the tasks
    in `florence_tasks.json` in these directories, those of the checkpoint and of a merged adapter.

    Raises `SettingsError` for files that can't be read, or one that names all invalid rows.
    """
    if named is None:
        return tasks_beside(*directories)
    parts = [part.strip() for part in named.split(",")]
    return declare([row for part in parts if part for row in _rows_of(part)])


def tasks_beside(*directories: Path) -> list[Task]:
    """The tasks of each directory's `florence_tasks.json`. Raises as `own_tasks`."""
    files = [directory / TASKS_FILE for directory in directories]
    return declare([row for file in files if file.is_file() for row in _read(file)])


def tasks_of_settings(settings: Settings) -> list[Task]:
    """The own tasks of the checkpoint and the adapters that the settings name, without loading them; empty
    where they can't be found."""
    try:
        folders = _folders_of(settings) if settings.tasks is None else []
        sources = adapters_of_settings(settings.adapters, settings.adapters_file)
        listed = {} if sources is None else list_adapters(sources, settings.max_adapters)
        beside = [tasks_beside(resolve_adapter(source).directory) for source in listed.values()]
    except CheckpointError:
        return []  # loading them will raise the error
    found = {task: None for tasks in (own_tasks(settings.tasks, *folders), *beside) for task in tasks}
    return list(found)


def _folders_of(settings: Settings) -> list[Path]:
    found = [resolve_checkpoint(settings.model, settings.revision, settings.base)]
    if settings.adapter:
        found.append(resolve_adapter(settings.adapter))
    return [each.directory for each in found]


def _rows_of(part: str) -> list[TaskRow]:
    if part in PRESETS:
        return [(f"preset {part}", row) for row in PRESETS[part]]
    try:
        if Path(part).is_file():
            return _read(Path(part))
    except OSError as error:  # a folder that can't be entered, a name that is too long
        raise SettingsError(f"FLORENCE_TASKS: {words_of(error)}") from None
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
