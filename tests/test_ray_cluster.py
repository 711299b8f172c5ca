"""`florence bulk --ray` on a cluster of two nodes of one core each: its answers, and recovery from
failures."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import ray_runs
from pages import BENCHMARKS, named_options
from pictures import drawn, saved
from ray.cluster_utils import Cluster
from serving import ROOT
from waiting import wait_until

from florence.answers.columns import read_columns
from florence.ray.pool import cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # Ray's own
]
Run = Callable[..., tuple[int, str, str]]
PATIENCE_S = 180.0  # nodes, drivers and actors each import what they need
ECHO = [sys.executable, str(ROOT / "tests" / "ray_runs.py")]
STORE_BYTES = 100 * 2**20
MARK = "TEST_RAY_MARK"


class Nodes:
    """A cluster on this machine, from which a test may remove a node. It has no more processes than
    needed, and keeps those of tasks, since a start takes over a second."""

    def __init__(self) -> None:
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        head |= {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head["_system_config"] = {
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
            "idle_worker_killing_time_threshold_ms": int(PATIENCE_S * 1000),
            "num_workers_soft_limit": 8,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.add()

    @property
    def address(self) -> str:
        """The cluster's address."""
        return str(self.cluster.address)

    def add(self) -> Any:
        """Add a node of one core."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def lose(self) -> None:
        """Remove the second node without notice, as if its machine failed."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster that this process is connected to; runs that are not killed run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        mark = uuid4().hex
        patch.setenv(MARK, mark)
        made = Nodes()
        with cluster(made.address):
            yield made
        made.cluster.shutdown()
        assert not left_over(mark)


def left_over(mark: str) -> list[str]:
    """The processes with this mark that still run when the patience is over."""
    end = time.monotonic() + PATIENCE_S
    while found := [each.info["name"] for each in psutil.process_iter(["name"]) if _has(each, mark)]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return found


def _has(process: psutil.Process, mark: str) -> bool:
    """Return whether another live process has this mark."""
    try:
        running = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        return running and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def pictures(folder: Path, count: int) -> list[str]:
    """Write `count` pictures into a new folder, and return their paths."""
    folder.mkdir()
    names = [str(folder / f"{number:03}.png") for number in range(count)]
    for number, name in enumerate(names):
        Path(name).write_bytes(saved(drawn(40 + number, 30), "PNG"))
    return names


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of a finished file or directory of parts."""
    if out.is_dir():
        return list(read_columns(out))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def answered_pictures(out: Path) -> list[str]:
    """The names of the answered pictures, sorted."""
    return sorted(row["picture"] for row in rows(out))


def start_until(command: Sequence[object], out: Path, answers: int) -> subprocess.Popen[bytes]:
    """Start a command, and return it still running once it has this many answers."""
    with out.with_suffix(".err").open("w") as err:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=err)
    end = time.monotonic() + PATIENCE_S
    while not out.exists() or len(rows_so_far(out)) < answers:
        assert process.poll() is None, "it ended before it was disturbed"
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill the driver."""
    driver.kill()
    driver.wait(PATIENCE_S)


def rows_so_far(out: Path) -> list[Any]:
    """The rows or raw lines that exist so far."""
    return rows(out) if out.is_dir() else out.read_bytes().splitlines()


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make actors answer at once, without a model."""
    monkeypatch.setattr("florence.cli.bulk_ray.actor_arguments", ray_runs.actor_arguments(0))


def test_answers_are_those_of_plain_bulk(nodes: Nodes, florence: Run, tmp_path: Path) -> None:
    """Files, an archive's member and a broken file give plain bulk's rows and failures, except for times;
    a second run has nothing left to do."""
    names = pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        member = tarfile.TarInfo("m.png")
        member.size = len(content := Path(names[0]).read_bytes())
        tar.addfile(member, io.BytesIO(content))
    plain, ray = tmp_path / "plain.jsonl", tmp_path / "ray.jsonl"
    asked = ["bulk", tmp_path / "in", shard, "--model", "demo", "--task", "caption", "--task", "od"]
    asked += ["--no-progress", "--concurrency", "2"]
    assert florence(*asked, "--out", plain)[0] == 3
    on_ray = [*asked, "--out", ray, "--ray", nodes.address]
    status, _, said = florence(*on_ray)
    assert (status, "10 answered, 2 failed" in said) == (3, True)

    def known(out: Path) -> list[dict[str, Any]]:
        kept = [{name: row[name] for name in row if name != "timings"} for row in rows(out)]
        return sorted(kept, key=lambda row: (row["picture"], row["task"]))

    assert len(known(ray)) == 10
    assert known(ray) == known(plain)
    failures = [sorted(map(str, rows(out.with_suffix(".failures.jsonl")))) for out in (plain, ray)]
    assert failures[0] == failures[1]
    (tmp_path / "in" / "bad.png").unlink()
    again = [word for word in on_ray if word != shard]
    assert "0 answered, 8 were there before" in florence(*again)[2]


@pytest.mark.usefixtures("echoes")
def test_runs_that_ended_early_are_finished_by_the_next(
    nodes: Nodes, florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run says what it keeps, and its own cluster leaves no process. A killed run's answers
    are kept too, and the last run asks for the rest. With --ordered each answer is there once, in the
    order of the pictures."""
    mark = uuid4().hex
    names, out = pictures(tmp_path / "in", 100), tmp_path / "r.jsonl"
    command = ["bulk", tmp_path / "in", "--task", "caption", "--out", out, "--ordered", "--concurrency", 1]
    with monkeypatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.delenv("RAY_ADDRESS", raising=False)
        driver = start_until([*ECHO, 0.3, *command, "--ray", "local"], out, 1)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE_S) == 130
    assert f"what {out} holds is kept" in (out.with_suffix(".err")).read_text()
    assert not left_over(mark)
    interrupted = rows_so_far(out)
    on_nodes = [*command, "--ray", nodes.address]
    kill(start_until([*ECHO, 0.3, *on_nodes], out, len(interrupted) + 1))
    killed = rows_so_far(out)
    assert len(interrupted) < len(killed) < len(names)
    assert "were there before" in florence(*on_nodes)[2]
    assert rows_so_far(out)[: len(interrupted)] == interrupted
    assert [row["picture"] for row in rows(out)] == names


@pytest.mark.usefixtures("echoes")
def test_parts_that_a_killed_driver_left_are_kept(nodes: Nodes, florence: Run, tmp_path: Path) -> None:
    """A killed driver's parts are kept, and the next run adds the rest; each answer is there once."""
    names, out = pictures(tmp_path / "in", 100), tmp_path / "parts"
    command = ["bulk", tmp_path / "in", "--task", "caption", "--out", out, "--no-progress", "--part-rows", 4]
    command += ["--concurrency", 2, "--ray", nodes.address]
    kill(start_until([*ECHO, 0.3, *command], out, 2))
    left = {part: part.read_bytes() for part in out.glob("*.parquet")}
    assert len(rows(out)) < len(names)
    assert "were there before" in florence(*command)[2]
    assert answered_pictures(out) == names
    assert {part: part.read_bytes() for part in left} == left


def test_a_node_that_dies_takes_nothing_with_it(
    nodes: Nodes, florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of a failed node's actor is repeated on the other node, and each answer is there once."""
    names, out = pictures(tmp_path / "in", 24), tmp_path / "r.jsonl"
    monkeypatch.setattr("florence.cli.bulk_ray.actor_arguments", ray_runs.actor_arguments(0.3))
    left = []

    def lose() -> None:
        wait_until(lambda: out.exists() and len(rows_so_far(out)) >= 4, PATIENCE_S)
        left.append(len(names) - len(rows_so_far(out)))
        nodes.lose()

    disaster = threading.Thread(target=lose)
    disaster.start()
    command = ["bulk", tmp_path / "in", "--task", "caption", "--out", out, "--no-progress"]
    assert florence(*command, "--concurrency", 2, "--ray", nodes.address, "--actors", 2)[0] == 0
    disaster.join(PATIENCE_S)
    assert left[0] > 0
    assert answered_pictures(out) == names
    assert not out.with_suffix(".failures.jsonl").exists()


def test_the_benchmark_runs_at_a_tiny_size(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark prints rates with and without Ray, and the bytes of a picture in the object store."""
    tiny = ["--size", "tiny", "--pictures", "3", "--rounds", "1", "--concurrency", "2"]
    tiny += ["--echo-pictures", "64", "--cores", "1", "--ray", nodes.address]
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", ["bulk_on_ray.py", *named_options("bulk_on_ray.py"), *tiny])
    runpy.run_path(str(BENCHMARKS / "bulk_on_ray.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"plain \d+\.\d+, one actor \d+\.\d+ pictures/s", printed)
    assert re.search(r"object store: [1-9]\d* bytes a picture there, [1-9]\d* back", printed)
