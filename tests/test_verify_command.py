"""`florence verify` as a program, from the files that a container has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from forked import Forker
from serving import ROOT

PATIENCE_S = 600.0


@pytest.mark.slow
def test_it_runs_from_the_files_of_a_bento(forks: Forker, tmp_path: Path) -> None:
    """The command runs completely from the files that bentofile.yaml packs, without a checkout or network."""
    packed = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))
    for pattern in packed["include"]:
        for file in filter(Path.is_file, ROOT.glob(pattern.removeprefix("/"))):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    for pattern in packed["exclude"]:
        for path in tmp_path.glob(pattern.strip("/")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = tmp_path / "report.json"
    command = ["-m", "florence.cli", "verify", "--model", "demo", "--device", "cpu", "--dtype", "float32"]
    ran = forks.run([*command, "--quick", "--json", str(report)], PATIENCE_S, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Verified" in ran.stdout
    assert "35 answers of each side; about" in ran.stderr
    assert "left" in ran.stderr
    found = json.loads(report.read_text())
    assert found["verified"] is True
    assert len(found["answers"]) == 35
