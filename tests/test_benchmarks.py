"""Each documented benchmark command runs to its end, with options that make it tiny."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from forked import Forker
from pages import BENCHMARKS, benchmark_commands, named_options

PATIENCE_S = 900  # seconds for a script on a busy machine

TINY = {
    "attacks.py": "--scale 0.001 --only half,docs.json,metadata,circle,private",
    "attention.py": "--requests 1 --beams 1 --threads 1",
    "bulk.py": "--pictures 40 --rounds 1 --seconds 0.2",
    "decode_step.py": "--size tiny --requests 1 --turns 1",
    "encode.py": "--size tiny --rounds 1 --threads 1",
    "endurance.py": "--few 4 --many 8 --turns 1 --answers 8 --threads 1",
    "grpc_workers.py": "--clients 2 --requests 1",
    "gpu_ledger.py": "--size tiny --crowds 2",
    "logits.py": "--size tiny --threads 1",
    "light_path.py": "--seconds 0.1 --rounds 1 --connections 1",
    "precision.py": "--size tiny --rounds 1 --threads 1",
    "products.py": "--width 64 --rows 3 --threads 1 --weight-bytes 65536",
    "start.py": "--rounds 1 --only until",
    "throughput.py": "--size tiny --window-s 0 --concurrency 2 --static-batches 1 --only caption",
    "tiles.py": "--count 1 --scales 4 --crowd-scales 3 --overlaps 0.2",
    "tour.py": "",
    "under_load.py": "--size tiny --dtype float32 --pictures 2 --concurrency 2 --turns 1 --side 64",
}
"""Options, added after the documented ones, that make a script small. Scripts that need more have tests of
their own below, or need what this machine lacks."""

Run = Callable[..., str]
"""A script's name, options -> its output."""

ELSEWHERE = {"bulk_on_ray.py", "drift.py", "exactness.py", "gpu.py", "perf_analyzer.py", "reading.py"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(forks: Forker) -> Run:
    """A function that runs a benchmark script and returns its output."""

    def printed(script: str, *options: str) -> str:
        ran = forks.run([str(BENCHMARKS / script), *options], PATIENCE_S)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return str(ran.stdout)

    return printed


@pytest.fixture(scope="module")
def beside_load(run: Run) -> str:
    """The output of the probes during large bodies and a burst, and of the load from the playground."""
    named = [word for mode in ("--health", "--playground") for word in named_options("under_load.py", mode)]
    small = "--burst 20 --mib 1 --playground 1 --turns 1 --rate 4 --pause 0.1"
    return run("under_load.py", *named, *small.split())


@pytest.mark.parametrize("script", sorted(TINY))
def test_a_script_runs_with_every_option_that_the_documents_name(script: str, run: Run) -> None:
    """A script accepts all its documented options and prints figures."""
    printed = run(script, *named_options(script), *TINY[script].split())
    assert re.search(r"\d", printed)


def test_a_time_limit_is_measured_on_every_door(run: Run) -> None:
    """The script measures all six interfaces, each with the seconds until it reported the expired
    time limit."""
    printed = run(
        "under_load.py", *named_options("under_load.py", "--deadline"), "--deadline", "0.001", "--side", "64"
    )
    told = re.compile(r"^(.*?) +[\d.]+ s  (?:504|DEADLINE_EXCEEDED|DeadlineExceeded)$", re.MULTILINE)
    assert told.findall(printed) == ["library", "typed", "analyze", "v2", "v2 generate", "v2 over gRPC"]


def test_probes_are_measured_beside_every_load(beside_load: str) -> None:
    """The script measures the probes during seven large bodies and a burst, each with its longest wait and
    the load's answers."""
    told = re.findall(r"^(.*?) +\d+ ms  ", beside_load, re.MULTILINE)
    assert told[0] == "nothing"
    assert len(set(told)) == 9
    assert re.search(r"^20 requests at once .* times 200", beside_load, re.MULTILINE)


def test_people_at_the_playground_are_measured(beside_load: str) -> None:
    """The script measures v2 alone and during playground use, and prints their ratio."""
    assert re.search(r"alone \d+ ms, beside the playground \d+: \d+\.\d+ of it", beside_load)


def test_every_script_is_run_by_a_test() -> None:
    """Every benchmark script is run by a test."""
    scripts = [path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert {path.name for path in scripts} == TINY.keys() | ELSEWHERE


def test_the_documents_name_the_scripts_that_are_there() -> None:
    """The documents name only existing scripts, and the list in benchmarks/README.md is complete."""
    named = {script for script, _ in benchmark_commands()}
    assert named <= TINY.keys() | ELSEWHERE
    table = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert {name for name in TINY.keys() | ELSEWHERE if f"`{name}`" not in table} == set()


def test_the_reading_script_measures_all_readers_at_tiny_sizes(run: Run) -> None:
    """The script measures each picture with each kind and number of readers, the parts of a reading, and a
    reader's memory."""
    printed = run("reading.py", "--tiny", "--pictures", "4", "--rounds", "1", "--readers", "1,3")
    assert printed.count("pictures/s") == 3 * 2 * 2
    assert printed.count("MiB private") == printed.count("decode") == 3
    assert printed.count("fast JPEG") == 2


def test_the_exactness_script_finds_all_ids_equal_at_tiny_sizes(run: Run) -> None:
    """The script finds equal ids for fifteen tasks with 1, 3 and 5 beams, although some answers end before
    their limit."""
    printed = run("exactness.py", *named_options("exactness.py"), "--size", "tiny", "--tokens", "10")
    for beams in (1, 3, 5):
        assert f"{beams} beams: 15 of 15 with the same token ids" in printed
    assert "lengths 10 to 10" not in printed
