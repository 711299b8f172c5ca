"""The pages are correct: their code runs and prints the shown output, and their tables are complete."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from docs_tables import COMMANDS, GENERATED, printed_help, with_part
from pages import DOCS, NAMES, anchors, blocks, links, read
from serving import ROOT, Server

from florence.server.observability.gpu_metrics import READINGS
from florence.settings import Settings
from florence.types.environment import CLIENT_KEY, PREFIX

PATIENCE_S = 300.0
EVERY_PAGE = pytest.mark.parametrize("name", NAMES)
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "data/README.md")
EVERY_FILE = pytest.mark.parametrize("name", [*NAMES, *OTHERS])
RUNS = [name for name in NAMES if any(block.runs for block in blocks(ROOT / name))]


@dataclass(frozen=True)
class Shared:
    """The service that all pages' examples call."""

    server: Server
    grpc_port: int

    def at_its_address(self, code: str) -> str:
        """The code with this service's addresses and a short load."""
        code = code.replace("http://localhost:8000", self.server.url)
        code = code.replace("localhost:8001", f"127.0.0.1:{self.grpc_port}")
        return code.replace("--spawn-rate 4 --run-time 5s", "--spawn-rate 100 --run-time 1s")


@pytest.fixture(scope="module")
def shared(demo_server: Server) -> Shared:
    """The demo checkpoint in float32, as the pages show it."""
    return Shared(demo_server, demo_server.grpc_port)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the project's files, which keeps the checkout clean."""
    for name in ("benchmarks", "data", "deploy", "florence", "locustfile.py", "service.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLORENCE_DTYPE", "float32")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_code_of_a_page_runs_and_prints_what_is_shown(name: str, shared: Shared, folder: Path) -> None:
    """A page's blocks run in order from the project's folder and print the shown output.

    Only addresses and the length of loads are changed. Python blocks continue where the page's previous one
    ended.
    """
    variables: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(ROOT / name):
        if not block.runs:
            continue
        place = f"{name}, line {block.line}"
        code = shared.at_its_address(block.code)
        printed = run_shell(code, place) if block.language == "sh" else run_python(code, variables, place)
        if block.shown is not None:
            assert agrees(printed, block.shown), f"{place} printed:\n{printed}"


def run_shell(code: str, place: str) -> str:
    """Run the code with bash and return its output."""
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{place} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def run_python(code: str, variables: dict[str, object], place: str) -> str:
    """Run the code with these variables and return its output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, place, "exec"), variables)
    return printed.getvalue()


def agrees(printed: str, shown: str) -> bool:
    """True if this was printed: numbers differ by 0.01 at most, `...` matches anything, and JSON agrees
    except for times."""
    if shown.startswith("{\n"):
        answers = [json.loads(text) for text in (printed, shown)]
        if not all("timings" in answer for answer in answers):
            return False
        printed, shown = (json.dumps({**each, "timings": None}, sort_keys=True) for each in answers)
    number, parts = r"(-?\d+\.\d+)", re.split(r"(-?\d+\.\d+|\.\.\.)", shown.strip())
    pattern = "".join(
        re.escape(part) if index % 2 == 0 else ".*" if part == "..." else number
        for index, part in enumerate(parts)
    )
    found = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    numbers = [float(part) for part in parts[1::2] if part != "..."]
    return found is not None and [*map(float, found.groups())] == pytest.approx(numbers, abs=0.01)


def test_agrees_accepts_equal_outputs_only() -> None:
    """`agrees` accepts equal outputs and refuses different ones."""
    assert agrees("a 1.0001 b c\n", "a 1.0002 ... c")
    assert not agrees("a 1.1 b c", "a 1.2 ... c")
    assert not agrees("a b", "a")
    shown = '{\n"text": "a", "score": 0.5, "timings": 1}'
    assert agrees('{"score": 0.501, "text": "a", "timings": 2}', shown)
    assert not agrees('{"score": 0.6, "text": "a", "timings": 1}', shown)


def unrun(language: str) -> list[str]:
    """The code of all blocks in this language that the tests do not run."""
    return [
        each.code
        for name in NAMES
        for each in blocks(ROOT / name)
        if each.language == language and each.reason
    ]


def test_python_that_is_not_run_fits_the_package() -> None:
    """In blocks that are not run, imported names exist, and calls of them fit their parameters."""
    checked = 0
    for code in unrun("python"):
        tree, ours = ast.parse(code), dict[str, Any]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("florence"):
                ours |= {
                    each.name: getattr(import_module(str(node.module)), each.name) for each in node.names
                }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
                named = {each.arg: None for each in node.keywords if each.arg}
                inspect.signature(ours[node.func.id]).bind_partial(*node.args, **named)
                checked += 1
    assert checked


def test_commands_that_are_not_run_have_options_that_exist() -> None:
    """In blocks that are not run, each option of `florence` is in the help of its command."""
    checked = 0
    for code in unrun("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words[:-1]):
                if word == "florence" and (words[at + 1],) in COMMANDS:
                    found = {each.partition("=")[0] for each in words[at:] if each.startswith("--")}
                    assert found <= set(re.findall(r"--[\w-]+", printed_help((words[at + 1],)))), line
                    checked += len(found)
    assert checked > 10


@EVERY_PAGE
def test_a_block_says_what_it_is(name: str) -> None:
    """Each block has a known language."""
    found = blocks(ROOT / name)
    assert {block.language for block in found} <= {"sh", "python", "text", "json", "yaml"}
    assert 2 * len(found) == len(re.findall(r"^```", read(ROOT / name), re.MULTILINE))


@EVERY_FILE
def test_every_link_leads_somewhere(name: str) -> None:
    """Each link leads to an existing file, and to an existing section in it."""
    for target, section in links(ROOT / name):
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        assert path.exists(), target
        if section:
            assert section in anchors(read(path)), f"{target}#{section}"


@EVERY_FILE
def test_every_file_and_target_that_is_named_exists(name: str) -> None:
    """Each named file and make target exists."""
    text = read(ROOT / name)
    folders = "benchmarks|data|deploy|docs|florence|tests"
    for found in re.findall(rf"[`\s](?:\./)?((?:{folders})/[\w./-]*+)(?![<*])", text):
        path = found.rstrip("./")
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|= )make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.fixture(scope="module")
def defined() -> dict[str, set[str]]:
    """The product's classes and functions -> the members of each class."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "florence").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = {getattr(part, "name", None) for part in node.body}
                inner |= {ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)}
                found.setdefault(node.name, set()).update(inner - {None})
    return found


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/engine.md"])
def test_the_code_that_is_named_exists(name: str, defined: dict[str, set[str]]) -> None:
    """Named classes, members, functions and modules exist, except those that an example would add."""
    text = read(ROOT / name)
    for named, member in re.findall(r"`([A-Z][a-z]\w+)(?:\.(\w+))?[`(]", text):
        assert named in defined or named in NOT_OURS, named
        assert not member or member in defined[named], f"{named}.{member}"
    for function in re.findall(r"`([a-z]+_[a-z_]+)[`(]", text):
        assert function in defined or function in FIELDS, function
    for module in re.findall(r"`([a-z]+/[\w/]+(?:\.py)?)`", text if "docs/" in name else ""):
        assert (ROOT / "florence" / module).exists(), module


NOT_OURS = {"SecretStr"}  # pydantic's
FIELDS = {"cpu_kernels", "max_new_tokens", "on_done"}  # attributes and arguments


@EVERY_PAGE
def test_no_setting_is_named_that_does_not_exist(name: str) -> None:
    """Each named setting exists."""
    named = set(re.findall(r"FLORENCE_[A-Z_]+[A-Z]", read(ROOT / name)))
    assert named <= {CLIENT_KEY, *(PREFIX + field.upper() for field in Settings.model_fields)}


@pytest.mark.parametrize("part", GENERATED)
def test_what_is_made_from_the_code_is_up_to_date(part: str) -> None:
    """Generated parts are up to date; `python tests/docs_tables.py` updates them."""
    file, make = GENERATED[part]
    page = read(DOCS / file)
    assert with_part(page, part, make()) == page


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command: tuple[str, ...]) -> None:
    """Help lines are at most 100 characters wide."""
    lines = printed_help(command).splitlines()
    assert lines
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_the_metrics_are_those_of_the_service(fake_server: Server) -> None:
    """The page has a row for each of the service's metrics.

    Those that need a real model's requests, API keys or GPUs are checked in `test_monitoring`.
    """
    rows = re.findall(r"^\| `((?:florence|nv|bentoml)_\w+)` \|", read(DOCS / "metrics.md"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    text = httpx.get(f"{fake_server.url}/metrics", timeout=60).text
    there = re.findall(r"^# TYPE ((?:florence|nv|bentoml)_\w+) (\w+)$", text, re.MULTILINE)
    names = {
        f"{name.removesuffix('_total')}_total" if kind == "counter" and not name.startswith("nv") else name
        for name, kind in there
    }
    parts = {f"florence_request_{part}_seconds" for part in ("read", "queue", "encode", "decode", "total")}
    assert set(rows) == names | parts | {"florence_key_requests_total"} | {each.name for each in READINGS}


@EVERY_PAGE
def test_every_metric_that_is_named_has_its_row(name: str) -> None:
    """Each metric named on a page has a row in the table."""
    rows = set(re.findall(r"^\| `(\w+)` \|", read(DOCS / "metrics.md"), re.MULTILINE))
    not_ours = re.compile(r"nv_(gpu|cpu|energy|cache|inference_first)_\w*")
    for metric in re.findall(r"\b(?:florence_[a-z]+_[a-z]+|nv_)\w*[a-z]\b", read(ROOT / name)):
        assert metric in rows or not_ours.fullmatch(metric) or metric in FILES, metric


FILES = {"nv_inference"}  # a family of metrics


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """MkDocs finds no broken link, and the pages load scripts, styles, fonts and pictures only from their own
    site."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (`pip install '.[docs]'`)")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    foreign = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", re.IGNORECASE
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert foreign.search(text) is None, page.name
        assert re.search(r"<(?:[A-Z_]{2,}|n|loc_\w+)>", text) is None, f"{page.name}: a token became a tag"
    for style in (tmp_path / "site").rglob("*.css"):
        assert (
            re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) is None
        )
