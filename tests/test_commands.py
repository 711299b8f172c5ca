"""Commands of modules and of make that the documents name run at a tiny size; `test_benchmarks` has the
scripts of benchmarks/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forker
from pages import fuzz_options, module_commands
from serving import ROOT, Server

PATIENCE_S = 900  # of a command on a machine that does other work too
TINY = {
    "florence.demo.evaluate": ["--count", "1", "--tasks", "caption"],
    "florence.demo.draw": ["--count", "1"],
}
ELSEWHERE = {"florence.cli"}  # test_verify_command and the tests of each command

pytestmark = pytest.mark.slow


def named(module: str, *, asks_a_service: bool) -> list[str]:
    """All options with which the documents call a module, one after the other."""
    calls = [options for name, options in module_commands() if name == module]
    return [word for call in calls if ("--url" in call) is asks_a_service for word in call]


def test_every_module_that_is_named_is_run() -> None:
    """Each module that the documents run is run here, or has tests of its own."""
    assert {module for module, _ in module_commands()} == TINY.keys() | ELSEWHERE


@pytest.mark.parametrize("module", TINY)
def test_a_module_runs_with_every_option_that_is_named(module: str, forks: Forker, tmp_path: Path) -> None:
    """A module takes all the options that the documents name, and prints or writes something."""
    ran = forks.run(["-m", module, *named(module, asks_a_service=False), *TINY[module]], PATIENCE_S, tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout or list(tmp_path.iterdir())


def test_the_evaluation_asks_a_service(forks: Forker, demo_server: Server, tmp_path: Path) -> None:
    """The evaluation of a service runs with the options that the documents name, and writes its figures."""
    module = "florence.demo.evaluate"
    options = [*named(module, asks_a_service=True), *TINY[module], "--url", demo_server.url]
    ran = forks.run(["-m", module, *options], PATIENCE_S, tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert (tmp_path / "served.json").stat().st_size > 0


@pytest.mark.parametrize("over_network", [False, True])
def test_the_fuzzers_run_with_every_option_that_is_named(over_network: bool, tmp_path: Path) -> None:
    """The fuzzers run with every option that the documents name, and find nothing in a few inputs."""
    calls = [call for call in fuzz_options() if ("--kinds=" in call) is over_network]
    few = [
        "--inputs",
        "2",
        "--requests",
        "4" if over_network else "0",
        "--examples",
        "1" if over_network else "0",
    ]
    command = [
        sys.executable,
        str(ROOT / "tests" / "fuzz.py"),
        *(word for call in calls for word in call),
        *few,
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert calls


def test_the_check_of_the_image_finds_its_tests() -> None:
    """`make image-check` needs a container engine; what it would run is collected."""
    printed = subprocess.run(
        ["make", "-n", "image-check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    options = (
        next(line for line in printed.splitlines() if " -m pytest " in line).split(" -m pytest ")[1].split()
    )
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert "tests/test_image.py::" in collected.stdout
