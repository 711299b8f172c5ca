"""The tests for a GPU run where the service's packages are not installed, as on a machine lent for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Forker

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
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins are packages too
sys.modules.update(dict.fromkeys({absent!r}))
import pytest
bare = ["-q", "-p", "no:cacheprovider"]
found = pytest.main([*bare, "--collect-only", "-m", "gpu"])
print({between!r})
run = ["tests/test_gpu_device.py", "tests/test_gpu_engine.py", "-k", "captured and not answers"]
ran = pytest.main([*bare, *run])
sys.exit(found or ran)
"""
PATIENCE_S = 600.0
BETWEEN = "=== and now they run ==="


@pytest.mark.slow
def test_the_tests_with_the_mark_are_found_and_no_others_and_run_on_a_cpu(
    forks: Forker, tmp_path: Path
) -> None:
    """`pytest -m gpu` imports no module that needs the service's packages, and collects exactly the GPU
    tests, which also run on a CPU."""
    program = tmp_path / "program.py"
    program.write_text(RUN.format(absent=ABSENT, between=BETWEEN))
    ran = forks.run([str(program)], PATIENCE_S, TESTS.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    collected, _, summary = ran.stdout.partition(BETWEEN)
    names = [line for line in collected.splitlines() if "::" in line]
    assert {Path(name.partition("::")[0]).name for name in names} == {
        "test_gpu_engine.py",
        "test_gpu_device.py",
    }
    assert len(names) >= 8
    assert all("cuda" in name or "on_a_gpu" in name for name in names)
    assert "passed" in summary
