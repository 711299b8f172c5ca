"""Sections of a long run that fail independently.

Each has a limit, its figures are written as they come, and a section that hangs or breaks the device ends the
process; a new process continues with the rest. Knows nothing about what is measured.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

Add = Callable[[str, Any], None]
"""A function that stores a figure under a name."""

Way = tuple[str, Callable[[], AbstractContextManager[None]]]
"""A name, and a context in which a failed section is tried again."""


@dataclass(frozen=True, slots=True)
class Section:
    """A measurement. `work` gets a function that records figures by name. `limit_s`: the time after which it
    counts as hung."""

    name: str
    limit_s: float
    work: Callable[[Add], None]


@dataclass
class Report:
    """The figures of a run, in a file that is rewritten with each of them."""

    path: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, name: str, value: Any) -> None:
        """Record one figure and print it."""
        self.figures.setdefault(section, {})[name] = value
        self._write()
        print(f"  {name}: {json.dumps(value)}", flush=True)

    def _write(self) -> None:
        """Replace the file by the current figures."""
        if self.path is not None:
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(self.figures, indent=2, default=str) + "\n")
            beside.replace(self.path)

    @classmethod
    def resumed(cls, path: Path | None) -> Report:
        """A report that continues an earlier process's file."""
        if path is None or not path.exists():
            return cls(path)
        return cls(path, json.loads(path.read_text()))


class Lost(Exception):
    """A section hung, or the device accepts no more work: this process can't measure anything else."""


@dataclass
class Sections:
    """Run sections in order. `ends_at`: the value of `time.time()` by which all must end.

    `ways`: contexts tried in turn if a section fails; one that helps is kept for the rest. `state`: recorded
    before and after each section, such as the device's clocks. `is_lost`: returns True if the device accepts
    no more work.
    """

    report: Report
    ends_at: float
    ways: Sequence[Way] = ()
    state: Callable[[], Any] = lambda: None
    is_lost: Callable[[], bool] = lambda: False
    _kept: Way | None = None

    def run(self, sections: Sequence[Section]) -> None:
        """Run all sections. Raises `Lost` with the remaining ones if the process has to end."""
        for index, section in enumerate(sections):
            if (left_s := self.ends_at - time.time()) <= 0:
                self.report.add("run", f"left out, no time: {section.name}", True)
                continue
            print(f"{section.name} ({left_s:.0f} s are left)", flush=True)
            try:
                self._one(section)
            except Lost as error:
                error.add_note(section.name)
                raise Lost(sections[index + 1 :]) from error

    def _one(self, section: Section) -> None:
        """Run one section, in other ways if it fails."""
        started, before = time.time(), self.state()
        done = self._attempt(section, self._kept)
        for way in () if done else self.ways:
            if way is self._kept:
                continue
            print(f"  again: {way[0]}", flush=True)
            done = self._attempt(section, way)
            if done:
                self._kept = way
                self.report.add("run", f"kept after {section.name}", way[0])
                break
        if before is not None:
            self.report.add(section.name, "device before and after", [before, self.state()])
        self.report.add(section.name, "seconds", round(time.time() - started, 1))

    def _attempt(self, section: Section, way: Way | None) -> bool:
        """Run a section in a thread of its own, since a hung one can't be stopped. Returns True if it
        succeeded."""
        raised: list[BaseException] = []
        limit_s = min(section.limit_s, self.ends_at - time.time())

        def work() -> None:
            try:
                with nullcontext() if way is None else way[1]():
                    section.work(partial(self.report.add, section.name))
            except BaseException as error:  # noqa: BLE001  (written into the report)
                raised.append(error)

        thread = threading.Thread(target=work, name=section.name, daemon=True)
        thread.start()
        thread.join(max(limit_s, 0.0))
        label = "failed" if way is None else f"failed, {way[0]}"
        if thread.is_alive():
            self.report.add(section.name, label, f"not over after {limit_s:.0f} s\n{stacks()}")
            raise Lost(section.name)
        if raised:
            self.report.add(section.name, label, "".join(traceback.format_exception(raised[0])))
            if self.is_lost():
                raise Lost(section.name)
        return not raised


def stacks() -> str:
    """The stacks of all threads."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def watch(seconds: float) -> None:
    """End this process after `seconds` in any case and print its stacks, even if Python itself hangs."""
    faulthandler.dump_traceback_later(max(seconds, 1.0), exit=True)


def go_on(names: Sequence[str], options: Mapping[str, str]) -> None:
    """Replace this process by one that runs these sections, which frees memory and a broken device's state.
    Does not return."""
    words = [word for name, value in options.items() for word in (name, value)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *own_command(), "--only", *names, *words])


def own_command() -> list[str]:
    """The command of this script, without the options that `go_on` adds."""
    kept: list[str] = []
    dropping = False
    for word in sys.argv:
        if word.startswith("--"):
            dropping = word in ("--only", "--ends-at")
        if not dropping:
            kept.append(word)
    return kept
