"""The parts of docs/ that are generated from the code: `python tests/docs_tables.py` writes them again.

With `--reckoned` it also writes the estimated figures of a GPU, which take a minute.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from serving import ROOT

from florence.cli import main
from florence.settings import Settings
from florence.types.environment import PREFIX
from florence.types.filters import ItemFilter
from florence.types.options import GenerationParameters, allowed_values
from florence.types.tasks import TASKS, Input
from florence.types.tiling import TileOptions

DOCS = ROOT / "docs"
COMMANDS = (
    (),
    ("run",),
    ("bulk",),
    ("draw",),
    ("export",),
    ("info",),
    ("load-data",),
    ("serve",),
    ("convert",),
    ("verify",),
    ("evaluate",),
    ("mcp",),
)


def settings_table() -> str:
    """A table with a row for each setting: its variable, default and description."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def help_texts() -> str:
    """The help texts of the program and of each command."""
    blocks = []
    for command in COMMANDS:
        words = " ".join(("florence", *command))
        blocks.append(f"### {words}\n\n```text\n$ {words} --help\n{printed_help(command)}```")
    return "\n\n".join(blocks)


def printed_help(command: tuple[str, ...]) -> str:
    """The output of `florence COMMAND --help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue()


def tasks_table() -> str:
    """The built-in tasks: token, name, what they take besides the picture, summary."""
    rows = ["| token | name | besides the picture | answer |", "|---|---|---|---|"]
    for task in TASKS.values():
        given = "–" if task.input is Input.NONE else f"`{task.input}`"
        rows.append(f"| `{task.token}` | `{task.name}` | {given} | {task.summary.removesuffix('.')} |")
    return "\n".join(rows)


def options_table(model: type[BaseModel]) -> str:
    """The options that a model declares: name, allowed values, description."""
    rows = ["| option | values | what |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        words = re.sub(r"\b(\w+_\w+(=\w+)?|tiles=auto)\b", r"`\1`", str(field.description).removesuffix("."))
        rows.append(f"| `{name}` | {allowed_values(name)} | {words} |")
    return "\n".join(rows)


GENERATED: Mapping[str, tuple[str, Callable[[], str]]] = MappingProxyType(
    {
        "settings": ("settings.md", settings_table),
        "help": ("command-line.md", help_texts),
        "tasks": ("tasks.md", tasks_table),
        "options": ("tasks.md", partial(options_table, GenerationParameters)),
        "filters": ("tasks.md", partial(options_table, ItemFilter)),
        "tiles": ("tiles.md", partial(options_table, TileOptions)),
    }
)
"""Name of a part -> its page, and the function that makes it."""


def reckoned_tables() -> str:
    """The estimates of `python benchmarks/gpu_ledger.py` for Florence-2-large on an H100."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from ledger.reckoning import reckon
    from ledger.report import page

    return page(reckon("h100", "large", requests=64, beams=3, length=128))


def settings_tables() -> str:
    """The estimates with other settings, and with adapters, also for Florence-2-base."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from ledger.reckoning import reckon, reckon_work
    from ledger.report import adapters_table, settings_table

    step: Mapping[str, Any] = {"requests": 64, "beams": 3, "length": 128}
    settings = [
        reckon("h100", "large", **step, fp8=fp8, encode_stream=stream)
        for fp8 in (False, True)
        for stream in ("auto", "off")
    ]
    sizes = [
        reckon_work("h100", size, **step, adapters=adapters)
        for size in ("large", "base")
        for adapters in (0, 8)
    ]
    return f"{settings_table(settings)}\n\n{adapters_table(sizes)}"


RECKONED: Mapping[str, tuple[str, Callable[[], str]]] = MappingProxyType(
    {
        "reckoned": ("performance.md", reckoned_tables),
        "reckoned settings": ("performance.md", settings_tables),
    }
)
"""The parts that take long to make, as in `GENERATED`; `tests/test_ledger_figures.py` checks them."""


def with_part(page: str, name: str, part: str) -> str:
    """The page with this part between its two comments."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(\n?<!-- end -->)"
    made, count = re.subn(pattern, lambda found: f"{found[1]}\n{part}\n\n<!-- end -->", page, flags=re.DOTALL)
    assert count == 1, name
    return made


def write(parts: Mapping[str, tuple[str, Callable[[], str]]]) -> None:
    """Write these parts into their pages."""
    for name, (file, make) in parts.items():
        path: Any = DOCS / file
        path.write_text(with_part(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")


if __name__ == "__main__":
    write({**GENERATED, **(RECKONED if "--reckoned" in sys.argv else {})})
