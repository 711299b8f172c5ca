"""The tests for a GPU run where the service's packages are not installed, as on a machine lent for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ABSENT = (
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "bentoml",
    "grpc",
    "starlette",
    "hypothesis",
    "httpx",
)

RUN = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process that can't import what is absent."""
    code = RUN.format(absent=ABSENT)
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *arguments]
    bare = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins are packages too
    return subprocess.run(command, cwd=TESTS.parent, env=bare, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tests_with_the_mark_are_found_and_no_others() -> None:
    """`pytest -m gpu` imports no module that needs the service."""
    found = run("--collect-only", "-m", "gpu")
    assert found.returncode == 0, found.stdout + found.stderr
    names = [line for line in found.stdout.splitlines() if "::" in line]
    assert {Path(name.partition("::")[0]).name for name in names} == {
        "test_gpu_engine.py",
        "test_gpu_device.py",
    }
    assert len(names) >= 8
    assert all("cuda" in name or "on_a_gpu" in name for name in names)


@pytest.mark.slow
def test_they_run() -> None:
    """Here on the CPU."""
    ran = run("tests/test_gpu_device.py", "tests/test_gpu_engine.py", "-k", "captured and not answers")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
