"""Training in one file, for a machine without network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from florence.demo.bundle import write_bundle

WHERE = (
    "import sys, florence.demo.train as train, font_intuitive as font; print(train.__file__, font.__file__)"
)


def test_the_bundle_trains_alone(tmp_path: Path) -> None:
    """Run as a program elsewhere, the bundle takes a step of the plan and writes state and checkpoint; its
    package and fonts come from the file itself."""
    bundle = tmp_path / "train_demo.pyz"
    write_bundle(bundle)
    state = tmp_path / "state"
    ran = _run(tmp_path, str(bundle), "--state", str(state), "--minutes", "0")
    assert "1 steps in this run" in ran
    assert (state / "state.safetensors").is_file()
    assert (state / "checkpoint" / "model.safetensors").is_file()
    places = _run(tmp_path, "-c", f"import sys; sys.path.insert(0, {str(bundle)!r}); {WHERE}").split()
    assert all(place.startswith(str(bundle)) for place in places)


def _run(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
