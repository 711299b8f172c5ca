"""The adapters that a request may name, and the tasks that they declare; reloaded when the list file changes.

Knows names, files and tasks; knows nothing about how adapters are computed. A request keeps the adapter that
it started with, so an adapter that is removed from the list lives until its last request ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from florence.checkpoint.adapter_list import AdapterSources, list_adapters
from florence.checkpoint.adapters_beside import AdapterBase, digest_of_adapter
from florence.checkpoint.files import version_of
from florence.checkpoint.hub import resolve_adapter
from florence.engine.adapters import EngineAdapter
from florence.errors import CheckpointError, FlorenceError, OptionError, SettingsError, quote
from florence.runtime.own_tasks import tasks_beside
from florence.types.info import AdapterInfo
from florence.types.tasks import TASKS, Task, TaskTable

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Seconds between two checks of the list file's modification time."""

_TOWER: Final = "vision."
"""Prefix of the names of layers that picture tokens depend on."""


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """A loaded adapter. `source`: as the list names it; `label`: its name with the revision; `digest`: of its
    files; `tasks`: those that it declares."""

    engine: EngineAdapter
    source: str
    label: str
    digest: bytes
    tasks: Sequence[Task]

    @property
    def info(self) -> AdapterInfo:
        """The adapter's description for `info`."""
        rank = max(len(factors.down) for factors in self.engine.layers.values())
        tasks = [task.token for task in self.tasks]
        return AdapterInfo(name=self.engine.name, source=self.label, rank=rank, tasks=tasks)


@dataclass(frozen=True, slots=True)
class _Set:
    """All adapters at one time. `table`: all tasks. `owners`: for each task's token, the names of the
    adapters that declare it."""

    adapters: Mapping[str, ListedAdapter]
    table: TaskTable
    owners: Mapping[str, Sequence[str]]


class Adapters:
    """The adapters of one model. Thread-safe."""

    def __init__(
        self, tasks: TaskTable = TASKS, sources: AdapterSources | None = None,
        base: AdapterBase | None = None, most: int = 0,
    ) -> None:  # fmt: skip
        """`tasks`: those of the base checkpoint. `sources`: None for no adapters; a list file is watched
        until `close`. `base`: the checkpoint that adapters are for. `most`: the maximum number of adapters.

        Raises `SettingsError` and `CheckpointError`.
        """
        self._tasks, self._sources, self._base, self._most = tasks, sources, base, most
        self._version = version_of(sources) if isinstance(sources, Path) else ()
        self._set = _Set({}, tasks, {})
        self._ended = threading.Event()
        if sources is not None:
            self._set = self._read(sources)
        if isinstance(sources, Path):
            threading.Thread(target=self._watch, name="florence-adapters", daemon=True).start()

    @property
    def table(self) -> TaskTable:
        """The tasks of the base and of all adapters."""
        return self._set.table

    @property
    def engine_adapters(self) -> list[EngineAdapter]:
        """All adapters, as the engine takes them."""
        return [adapter.engine for adapter in self._set.adapters.values()]

    @property
    def infos(self) -> list[AdapterInfo]:
        """The description of each adapter."""
        return [adapter.info for adapter in self._set.adapters.values()]

    def find(self, name: str | None, task: Task) -> EngineAdapter | None:
        """The adapter of this name; for a name of None, the one that declares the task, or None.

        Raises `OptionError`, which lists the adapters, for an unknown name, and without a name if several
        declare the task.
        """
        now = self._set
        if name is None:
            owners = now.owners.get(task.token, ())
            if len(owners) > 1:
                raise OptionError(
                    f"{task.token} is a task of {' and '.join(owners)}: name one of them as adapter"
                )
            return now.adapters[owners[0]].engine if owners else None
        if name not in now.adapters:
            known = ", ".join(now.adapters)
            rest = f"; the adapters are {known}" if known else ": this service has none (FLORENCE_ADAPTERS)"
            raise OptionError(f"unknown adapter {quote(name)}{rest}")
        return now.adapters[name].engine

    def look(self) -> None:
        """Reload the list file if it has changed. If it is invalid, the old adapters stay, and the log says
        why."""
        if not isinstance(self._sources, Path) or (version := version_of(self._sources)) == self._version:
            return
        self._version = version
        try:
            self._set = self._read(self._sources)
        except FlorenceError as error:
            log.error("the adapters are unchanged: %s", error)
        else:
            log.info("the adapters are read again: %s", ", ".join(self._set.adapters) or "none")

    def close(self) -> None:
        """Stop watching the file."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                log.exception("the adapters are unchanged")

    def _read(self, sources: AdapterSources) -> _Set:
        listed = list_adapters(sources, self._most)
        adapters = {name: self._read_one(name, source) for name, source in listed.items()}
        table, owners = self._tasks, dict[str, list[str]]()
        for name, adapter in adapters.items():
            for task in adapter.tasks:
                if table.get(task.token) != task:  # another adapter may declare the same row
                    try:
                        table = table.extended([task])
                    except SettingsError as error:
                        raise SettingsError(f"the tasks of the adapter {name}: {error}") from None
                owners.setdefault(task.token, []).append(name)
        return _Set(adapters, table, owners)

    def _read_one(self, name: str, source: str) -> ListedAdapter:
        found = resolve_adapter(source)
        before = self._set.adapters.get(name)
        digest = digest_of_adapter(found.directory)
        tasks = tasks_beside(found.directory)
        if before is not None and before.digest == digest:
            engine = before.engine
        elif self._base is None:
            raise CheckpointError(f"the adapter {name} needs a checkpoint to be read for")
        else:
            layers = self._base.read(name, found.directory)
            sees = any(layer.startswith(_TOWER) for layer in layers)
            engine = EngineAdapter(name, layers, digest if sees else b"")
        return ListedAdapter(engine, source, found.label, digest, tasks)
