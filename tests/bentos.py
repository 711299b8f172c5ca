"""Bentos for tests: `bentoml build` into a BENTOML_HOME of their own, and `bentoml serve` of the result."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving import ROOT, Server, serving

DEMO = ROOT / "florence" / "demo" / "checkpoint"


@dataclass(frozen=True)
class Bento:
    """A built Bento in a BENTOML_HOME of its own."""

    home: Path
    path: Path

    def serving(self, directory: Path, **environment: str) -> contextlib.AbstractContextManager[Server]:
        """Run `bentoml serve` of this Bento in a directory without the service's source."""
        return serving(str(self.path), directory, BENTOML_HOME=str(self.home), PYTHONPATH="", **environment)


def run_build(
    home: Path, arguments: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `bentoml build` and return the finished process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")}
    variables = {"BENTOML_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "bentoml",
            "build",
            str(ROOT),
            *(f"--arg={argument}" for argument in arguments),
        ],
        env=inherited | variables | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def build(home: Path, arguments: Sequence[str] = (), **environment: str) -> Bento:
    """Build a Bento; fail if the build fails."""
    built = run_build(home, arguments, **environment)
    assert built.returncode == 0, built.stderr
    (path,) = (found.parent for found in home.glob("bentos/florence2/*/bento.yaml"))
    return Bento(home, path)


def export(bento: Bento, folder: Path) -> None:
    """Export the Bento as a folder with its models, from which `bentoml containerize` builds an image."""
    program = "import bentoml, sys; bentoml.export_bento(sys.argv[1], sys.argv[2], output_format='folder')"
    tag = f"florence2:{bento.path.name}"
    variables = {**os.environ, "BENTOML_HOME": str(bento.home)}
    subprocess.run([sys.executable, "-c", program, tag, str(folder)], env=variables, check=True, timeout=300)
