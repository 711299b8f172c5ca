"""The benchmark scripts run from start to end at tiny sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"
SERVICE_ONLY = ["bentoml", "grpc", "httpx", "numba", "prometheus_client", "pydantic", "starlette"]

pytestmark = pytest.mark.slow


def run(script: str, *options: str, without: Sequence[str] = ()) -> str:
    """What the script prints where some packages are not installed."""
    path = str(SCRIPTS / script)
    program = (
        "import runpy, sys\n"
        f"sys.modules |= dict.fromkeys({list(without)})\n"  # importing one of them is an error
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def test_the_gpu_script_rehearses_on_a_cpu(tmp_path: Path) -> None:
    """All of its figures are there, and the fixed-shape steps give the ids of the plain search. It needs
    nothing that only the service does."""
    path = tmp_path / "figures.json"
    printed = run("gpu.py", "--rehearse", "--json", str(path), without=SERVICE_ONLY)
    figures = json.loads(path.read_text())
    exact = figures["exactness, float32"]["tiny"]
    assert exact["same ids"] == exact["requests"] > 10
    assert set(figures["nine tasks"]) == set(figures["transformers"])
    assert len(figures["nine tasks"]) == 9
    assert all(rate > 0 for rates in figures["nine tasks"].values() for rate in rates.values())
    assert "| OCR_WITH_REGION |" in printed


def test_the_exactness_script_finds_all_ids_equal_at_tiny_sizes() -> None:
    """Fifteen tasks, each with 1, 3 and 5 beams; some answers end before their limit."""
    printed = run("exactness.py", "--size", "tiny")
    for beams in (1, 3, 5):
        assert f"{beams} beams: 15 of 15 with the same token ids" in printed
    assert "lengths 20 to 20" not in printed


def test_the_start_script_waits_for_the_service() -> None:
    """One phase, one round: a line with seconds, and with CPU seconds."""
    printed = run("start.py", "--rounds", "1", "--only", "until ready")
    assert re.search(r"\| `florence serve`, until ready \| \d+\.\d\d \| \d+\.\d\d \|\n$", printed)
