"""`benchmarks/gpu.py`: a section that fails, hangs or breaks the device loses only its own figures; the
whole script can be rehearsed on a CPU without the service's packages."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Forker
from serving import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from closed_loop import TASKS
from on_gpu import sections, tables
from on_gpu.sections import Lost, Report, Section, Sections, own_command
from replaced import REPLACED

BENCHMARKS = ROOT / "benchmarks"
SERVICE_ONLY = ["bentoml", "grpc", "httpx", "numba", "prometheus_client", "pydantic", "starlette"]
PATIENCE_S = 900
Add = Callable[[str, Any], None]


def soon() -> float:
    """A time limit ten minutes from now."""
    return time.time() + 600


def fine(add: Add) -> None:
    """A section that adds one figure."""
    add("figure", 1)


def test_a_section_that_fails_leaves_its_figures_and_its_error_and_the_others_run(tmp_path: Path) -> None:
    """A failed section leaves its figures and its error in the file, and the others run."""

    def broken(add: Add) -> None:
        add("before", 2)
        raise RuntimeError("no plan supports the graph")

    report = Report(tmp_path / "figures.json")
    Sections(report, soon()).run([Section("one", 60, broken), Section("two", 60, fine)])
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written == report.figures
    assert written["one"]["before"] == 2
    assert "no plan supports the graph" in written["one"]["failed"]
    assert "in broken" in written["one"]["failed"]
    assert written["two"]["figure"] == 1


def test_another_way_is_tried_and_kept_where_it_helps() -> None:
    """A failed section is tried with features off, one at a time; a change that helps is kept, others are
    not."""
    without: list[str] = []

    @contextmanager
    def way(name: str) -> Iterator[None]:
        without.append(name)
        try:
            yield
        finally:
            without.remove(name)

    def needs_no_graphs(add: Add) -> None:
        if without != ["graphs"]:
            raise RuntimeError("capture failed")
        add("ran", True)

    report = Report()
    ways = [(name, lambda name=name: way(name)) for name in ("cuDNN", "graphs")]
    seen: list[list[str]] = []
    Sections(report, soon(), ways).run(
        [Section("one", 60, needs_no_graphs), Section("two", 60, lambda add: seen.append(list(without)))]
    )
    assert report.figures["one"]["ran"]
    assert {"failed", "failed, cuDNN"} <= report.figures["one"].keys()
    assert report.figures["run"]["kept after one"] == "graphs"
    assert seen == [["graphs"]]
    report = Report()
    Sections(report, soon(), ways).run(
        [Section("one", 60, lambda add: 1 / 0), Section("two", 60, lambda add: seen.append(list(without)))]  # type: ignore[func-returns-value]
    )
    assert seen[1] == []


def test_a_section_that_hangs_ends_the_process_and_names_what_is_left() -> None:
    """A hanging section ends the process, with the stacks of all threads and the sections left to run."""
    let_go = threading.Event()

    def hang_here(add: Add) -> None:
        add("before", 1)
        let_go.wait(PATIENCE_S)

    report = Report()
    rest = [Section("two", 60, fine), Section("three", 60, fine)]
    with pytest.raises(Lost) as lost:
        Sections(report, soon()).run([Section("one", 1.0, hang_here), *rest])
    let_go.set()
    assert lost.value.args[0] == rest
    assert "hang_here" in report.figures["one"]["failed"]
    assert report.figures["one"]["before"] == 1


def test_a_broken_device_ends_the_process_a_mere_error_does_not() -> None:
    """An error ends the process only if `is_lost` reports a broken device."""
    report = Report()
    broken = Section("one", 60, lambda add: 1 / 0)  # type: ignore[func-returns-value]
    with pytest.raises(Lost):
        Sections(report, soon(), is_lost=lambda: True).run([broken, Section("two", 60, fine)])
    Sections(report, soon(), is_lost=lambda: False).run([broken, Section("two", 60, fine)])
    assert report.figures["two"]["figure"] == 1


def test_nothing_begins_when_time_is_over() -> None:
    """No section starts after the time limit, and the report names those left out."""
    report = Report()
    Sections(report, time.time() - 1).run([Section("one", 60, fine)])
    assert report.figures == {"run": {"left out, no time: one": True}}


def test_a_process_that_goes_on_keeps_figures_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted process keeps figures and options, with new sections and a new end."""
    path = tmp_path / "figures.json"
    Report(path).add("one", "figure", 1)
    assert Report.resumed(path).figures == {"one": {"figure": 1}}
    assert Report.resumed(None).figures == {}
    words = ["gpu.py", "--only", "a", "b", "--size", "base", "--ends-at", "7", "--json", "x"]
    monkeypatch.setattr(sys, "argv", words)
    assert own_command() == ["gpu.py", "--size", "base", "--json", "x"]
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    sections.go_on(["c"], {"--ends-at": "9"})
    assert started[0][1:] == ["gpu.py", "--size", "base", "--json", "x", "--only", "c", "--ends-at", "9"]


def test_the_table_has_what_there_is() -> None:
    """A row without figures is empty, as is the column for transformers if it did not run."""
    figures = {
        "rows": {
            "OD, one picture, 30 at once": {"rate": 50.0},
            "CAPTION, different pictures, 30 at once": {"rate": 100.0},
            "left out: OCR, one picture, 30 at once": "no time",
        }
    }
    lines = tables.table(figures).splitlines()
    assert lines[0] == (
        "| task | one picture, 30 at once | different pictures, 30 at once | transformers "
        "| replaced, 36 at once |"
    )
    assert lines[2:] == [
        f"| OD | 50.0 |  |  | {REPLACED[36]['OD']} |",
        f"| CAPTION |  | 100.0 |  | {REPLACED[36]['CAPTION']} |",
    ]
    assert tables.table({}).count("\n") == 1


@pytest.mark.slow
def test_the_whole_script_rehearses_on_a_cpu(forks: Forker, tmp_path: Path) -> None:
    """In a rehearsal on a CPU no section fails, each has figures, fixed-shape steps give transformers'
    ids, and none of the service's packages is imported."""
    path = tmp_path / "figures.json"
    script = str(BENCHMARKS / "gpu.py")
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        f"sys.modules |= dict.fromkeys({SERVICE_ONLY})\n"  # importing one of them is an error
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    options = ["--rehearse", "--stop-s", str(PATIENCE_S), "--json", str(path), "--traces", str(tmp_path)]
    ran = forks.run([str(program), *options], PATIENCE_S)
    figures = json.loads(path.read_text())
    assert {name: found for name, found in figures.items() if "failed" in found} == {}
    assert ran.returncode == 0, ran.stderr[-4000:]
    exact = figures["exactness"]["tiny, float32"]
    assert exact["same ids"] == exact["requests"] >= 6
    assert exact["changed when asked again"] == 0
    assert figures["exactness"]["tiny, torch.bfloat16"]["alone as in a crowd"]
    assert figures["start"]["graphs captured before ready"] > 0
    chosen = figures["start"]["encode stream"]
    assert chosen["setting"] in ("on", "off")
    assert min(chosen[way]["whole_s"] for way in ("between", "beside")) > 0
    replayed = [found for name, found in figures["replays"].items() if name.startswith("step")]
    assert replayed
    assert all(found["replay, ms"] > 0 for found in replayed)
    assert figures["profile"]["encode of 2"][0][1] > 0
    rows = [found for name, found in figures["rows"].items() if name.endswith(" at once")]
    assert len(rows) == 2 * len(TASKS)
    assert all(row["rate"] > 0 and row["p50"] <= row["p99"] for row in rows)
    assert set(figures["transformers"]["best rates"]) == set(TASKS)
    assert "head" in figures["variants"]
    assert not [name for name in figures["variants"] if name.endswith(": failed")]
    assert figures["drift"]["fp8"]["picture tokens"] > figures["drift"]["torch.bfloat16"]["picture tokens"]
    assert figures["variants"]["encode of 2, ms"]["fp8"] > 0
    rates = [figures["streams"][f"OD, encode stream {state}"]["rate"] for state in ("on", "off")]
    assert min(rates) > 0
    assert (tmp_path / "encode.json.gz").exists()
    assert re.search(r"^\| OCR_WITH_REGION \| +\d", ran.stdout, re.MULTILINE)
