"""Metrics of requests, GPUs and v2 counts: each event is counted in its series, and workers are summed."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fake_model import FakeModel
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import Server
from waiting import PATIENCE_S

from florence.engine.observer import FinishReason, RequestReport
from florence.errors import FlorenceError
from florence.server.observability.gpu_metrics import READINGS, gpu_lines
from florence.server.observability.metric_files import SIZES, reserve_files
from florence.server.observability.metrics import EngineMetrics

ROOT = Path(__file__).resolve().parents[1]
ANSWERED = RequestReport(
    task="caption",
    outcome=FinishReason.STOP,
    owner="alice",
    beams=3,
    tokens=7,
    picture_size=(2, 3),
    arrived=0.0,
    read_s=0.25,
    queue_s=0.5,
    encode_s=1.0,
    decode_s=2.0,
    total_s=4.0,
    context=copy_context(),
)
REFUSED = replace(
    ANSWERED, outcome=FinishReason.REFUSED, owner="", read_s=None, queue_s=None, encode_s=None, decode_s=None
)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Each value by its name and its labels, as Prometheus reads them."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which a service's workers keep their metrics."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def test_a_worker_has_the_room_of_its_metrics_from_the_start(fake_server: Server) -> None:
    """Each metrics file is allocated at start-up, without holes, so that a full disk can't end a worker
    later."""
    assert httpx.post(f"{fake_server.url}/caption", json={}, timeout=PATIENCE_S).status_code == 400
    assert httpx.get(f"{fake_server.url}/metrics", timeout=PATIENCE_S).status_code == 200
    files = list(fake_server.log_path.parent.rglob("*_[0-9]*.db"))
    assert {file.stem.rpartition("_")[0] for file in files} <= SIZES.keys()
    assert files
    for facts in (file.stat() for file in files):
        assert facts.st_blocks * 512 >= facts.st_size >= 2**16


@pytest.mark.parametrize(("reason", "refused"), [(errno.ENOSPC, True), (errno.EOPNOTSUPP, False)])
def test_a_full_disk_is_an_error_at_the_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reason: int, refused: bool
) -> None:
    """A full disk is an error at start-up that names the folder and what to change; a file system without
    allocation is accepted."""

    def fail(*_: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(FlorenceError, match=f"{directory}.*BENTOML_HOME") if refused else nullcontext():
        reserve_files()


def test_workers_that_are_gone_keep_their_counts_and_no_room(directory: Path) -> None:
    """The counts of ended workers stay in the sum, and their unused space is freed."""
    code = (
        "from florence.server.observability.metric_files import reserve_files\n"
        "reserve_files()\n"
        "from prometheus_client import Counter\n"
        "Counter('florence_seen', 'x').inc(5)\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True)
    before = sum(file.stat().st_blocks * 512 for file in directory.iterdir())
    reserve_files()
    (directory / f"counter_{os.getpid()}.db").rename(directory / "mine")
    after = sum(file.stat().st_blocks * 512 for file in directory.glob("*.db"))
    assert before >= sum(SIZES.values())
    assert after < sum(SIZES.values()) + 16 * 4096
    scraped = "from florence.server.observability.http_metrics import scrape; print(scrape().decode())"
    shown = subprocess.run(
        [sys.executable, "-c", scraped], env=dict(os.environ), capture_output=True, check=True
    )
    assert b"florence_seen_total 10.0" in shown.stdout


def test_a_file_that_is_mapped_elsewhere_is_replaced_and_not_cut(directory: Path) -> None:
    """As by a worker of another container, whose process id is none here: a cut would end it by SIGBUS."""
    file = directory / "counter_999999999.db"
    file.write_bytes((24).to_bytes(4, sys.byteorder) + b"x" * 60_000)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        reserve_files()
        assert file.stat().st_size == 24
        mapped[50_000:50_001] = b"y"
        assert os.fstat(opened.fileno()).st_size == 60_004
    assert not list(directory.glob("*.[0-9]*"))


def test_a_request_counts_under_its_task_and_its_end() -> None:
    """A request counts under its task and outcome, with a time for each part it reached and its key's
    name; a request without a task is `unknown`."""
    metrics = EngineMetrics({})
    for report in (ANSWERED, ANSWERED, replace(REFUSED, task="")):
        metrics.finished(report)
    seen = samples(generate_latest(metrics.registry).decode())
    stopped = (("outcome", "stop"), ("task", "caption"))
    for part, seconds in {"read": 0.25, "queue": 0.5, "encode": 1, "decode": 2, "total": 4}.items():
        assert seen[f"florence_request_{part}_seconds_count", stopped] == 2
        assert seen[f"florence_request_{part}_seconds_sum", stopped] == 2 * seconds
    refused = (("outcome", "refused"), ("task", "unknown"))
    assert seen["florence_request_total_seconds_count", refused] == 1
    assert ("florence_request_read_seconds_count", refused) not in seen
    assert seen["florence_requests_total", (("outcome", "stop"),)] == 2
    assert seen["florence_key_requests_total", (("key", "alice"), ("outcome", "stop"))] == 2
    assert not any(labels == (("key", ""), ("outcome", "refused")) for _, labels in seen)


def test_a_ready_worker_says_what_runs_and_what_it_holds() -> None:
    """A ready worker reports versions, checkpoint, device, dtype, its start in seconds, and memory in
    bytes, measured again at each encode."""
    metrics, model = EngineMetrics({}), FakeModel()
    held = {"caches": 3}
    metrics.ready(model.info(), lambda: held, 1.5)
    held["caches"] = 4
    metrics.encoded(1, 1, 0.1)
    seen = samples(generate_latest(metrics.registry).decode())
    assert seen["florence_ready_seconds", ()] == 1.5
    assert seen["florence_memory_bytes", (("part", "caches"),)] == 4
    (build,) = (dict(labels) for name, labels in seen if name == "florence_build_info")
    assert (build["checkpoint"], build["device"], build["dtype"]) == ("fake", "cpu", "float32")
    assert build["encode_stream"] == "off"
    assert build["torch"]


class NvmlError(Exception):
    """An error of the driver's library."""


def fake_nvml(gpus: int, missing: str = "") -> Any:
    """The driver's library with this many GPUs, on which the function `missing` is not supported."""

    def unsupported(_gpu: int) -> None:
        raise NvmlError("not supported")

    def no_driver() -> None:
        if not gpus:
            raise NvmlError("no driver")

    functions = {
        "nvmlInit": no_driver,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}",
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=50 + gpu),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=100, used=10 + gpu),
        "nvmlDeviceGetPowerUsage": lambda gpu: 90_500,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 300_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: 2_000,
    }
    return SimpleNamespace(
        NVMLError=NvmlError, **{**functions, **({missing: unsupported} if missing else {})}
    )


def test_gpus_have_triton_s_names_and_units() -> None:
    """GPU metrics have Triton's names and units (ratios, bytes, watts, joules) by UUID; the counter has no
    `_total`."""
    text = "".join(gpu_lines(fake_nvml(2)))
    first, second = (("gpu_uuid", "GPU-0"),), (("gpu_uuid", "GPU-1"),)
    seen = samples(text)
    assert (seen["nv_gpu_utilization", first], seen["nv_gpu_utilization", second]) == (0.5, 0.51)
    assert seen["nv_gpu_memory_used_bytes", second] == 11
    assert (seen["nv_gpu_power_usage", first], seen["nv_gpu_power_limit", first]) == (90.5, 300)
    assert 'nv_energy_consumption{gpu_uuid="GPU-0"} 2.0' in text


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_what_a_driver_does_not_give_is_left_out(reading: Any) -> None:
    """A metric that the driver doesn't support is left out, and no other; without a driver there are none."""
    text = "".join(gpu_lines(fake_nvml(1, reading.function)))
    left_out = [each.name for each in READINGS if each.function == reading.function]
    assert [each.name for each in READINGS if f"# TYPE {each.name} " not in text] == left_out
    assert not list(gpu_lines(fake_nvml(0)))


WORKER = """
import sys
from florence.server.v2.model import ServedModel
from florence.server.v2.statistics import Reason, Spans, Statistics
statistics = Statistics(ServedModel())
for _ in range(int(sys.argv[1])):
    statistics.begin()
    statistics.succeed(2, Spans(1000, 2000, 3000, 4000))
statistics.begin()
statistics.fail_for(Reason.BACKEND, 5000)
other = Statistics(ServedModel("other"))
other.begin()
other.succeed(5, Spans(1, 2, 3, 4))
"""
READER = """
import json
from florence.server.observability.http_metrics import scrape
from florence.server.v2.model import ServedModel
from florence.server.v2.statistics import Statistics
statistics = Statistics(ServedModel())
print(json.dumps([statistics.as_dict(), statistics.as_metrics(), scrape().decode()]))
"""


def python(code: str, directory: Path, *arguments: str) -> str:
    """The output of this code, run as a worker whose metrics are in the directory."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_workers_v2_counts_are_one_sum(tmp_path: Path) -> None:
    """Any worker reports the sum of all workers, also of ended ones, without another model's counts;
    internal metrics are not shown."""
    python(WORKER, tmp_path, "3")
    python(WORKER, tmp_path, "4")
    entry, text, scraped = json.loads(python(READER, tmp_path))
    assert (entry["inference_count"], entry["execution_count"]) == (14, 7)
    assert entry["inference_stats"]["fail"] == {"count": 2, "ns": 10_000}
    assert entry["inference_stats"]["compute_infer"] == {"count": 7, "ns": 21_000}
    assert [batch["batch_size"] for batch in entry["batch_stats"]] == [2]
    assert entry["last_inference"] > 1_500_000_000_000
    assert 'nv_inference_request_success{model="florence2",version="1"} 7' in text
    assert 'reason="BACKEND"} 2' in text
    assert 'nv_inference_pending_request_count{model="florence2",version="1"} 0' in text
    assert "v2_counts" not in scraped
