"""README.md and the pages of docs/: their text, links and code blocks, and the commands of scripts and
modules named in them and in benchmarks/."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from serving import ROOT

DOCS = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
NAMES: Final = tuple(str(page.relative_to(ROOT)) for page in PAGES)
RUNNABLE: Final = ("sh", "python")
BENCHMARKS = ROOT / "benchmarks"
MODES: Final = {"--deadline", "--health", "--playground"}
"""Options that switch a benchmark to another mode; each mode has a test of its own."""

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_BENCHMARK = re.compile(r"python benchmarks/(\w+\.py)([^\n`#]*)")
_MODULE = re.compile(r"python -m (florence[\w.]*)([^\n`#]*)")
_FUZZ = re.compile(r'make fuzz(?: FUZZ="([^"\n]*)")?')


@dataclass(frozen=True)
class Block:
    """A fenced block. shown: the output shown right below it, if any. reason: why it is not run, if it is
    not. line: its first line in the page."""

    language: str
    code: str
    reason: str | None
    shown: str | None
    line: int

    @property
    def runs(self) -> bool:
        """True if the tests run this block."""
        return self.language in RUNNABLE and self.reason is None


def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = read(page)
    found = list(_BLOCK.finditer(text))
    made = []
    for block, after in zip_longest(found, found[1:]):
        shown = None
        if (
            after is not None
            and after["language"] in ("text", "json")
            and not text[block.end() : after.start()].strip()
        ):
            shown = after["code"]
        line = text.count("\n", 0, block.start("code"))
        made.append(Block(block["language"], block["code"], block["reason"], shown, line))
    return made


def anchors(text: str) -> set[str]:
    """The anchors of a page's sections, as MkDocs and GitHub make them from titles."""
    titles = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[str, str]]:
    """(target, section) of each link to a file of this project; an empty target is the page itself."""
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", read(page))
    return [(target, section) for target, section in found]


def benchmark_commands() -> list[tuple[str, list[str]]]:
    """(script, its options) of each command that the documents name."""
    return _commands(_BENCHMARK)


def module_commands() -> list[tuple[str, list[str]]]:
    """(module, its options) of each `python -m florence...` that the documents name."""
    return _commands(_MODULE)


def fuzz_options() -> list[list[str]]:
    """The options of each `make fuzz` that the documents name, but for a call of its help."""
    calls = [shlex.split(found[1] or "") for text in _texts() for found in _FUZZ.finditer(text)]
    return [options for options in calls if options != ["--help"]]


def _texts() -> list[str]:
    return [*map(read, (*BENCHMARKS.glob("*.md"), *PAGES, ROOT / "CONTRIBUTING.md"))]


def _commands(pattern: re.Pattern[str]) -> list[tuple[str, list[str]]]:
    return [(found[1], shlex.split(found[2])) for text in _texts() for found in pattern.finditer(text)]


def named_options(script: str, mode: str | None = None) -> list[str]:
    """All options of a script's documented commands in this mode, or without a mode, in one list."""
    calls = [options for name, options in benchmark_commands() if name == script]
    return [word for call in calls if next(iter(MODES & {*call}), None) == mode for word in call]
