"""data/README.md describes the files in data/, and its commands make them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from serving import ROOT

DATA = ROOT / "data"
PAGE = (DATA / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (-m florence\.demo\.draw .*)$", PAGE, re.MULTILINE)


def test_the_page_names_every_file() -> None:
    """The page names every file, or its pattern."""
    for path in DATA.iterdir():
        pattern = re.sub(r"load_data_[A-Z_]+", "load_data_<TASK>", path.name)
        pattern = re.sub(r"^[a-z]+_(?=annotations|captions|questions)", "*_", pattern)
        assert f"`{pattern}`" in PAGE or path.name == "README.md", path.name


def test_sizes_are_the_pictures() -> None:
    """The page states each picture's size."""
    rows = re.findall(r"^\| `(\w+\.(?:png|jpg))` \| (\d+) x (\d+) \|", PAGE, re.MULTILINE)
    assert {name for name, _, _ in rows} == {
        path.name for path in DATA.iterdir() if path.suffix in (".png", ".jpg")
    }
    for name, width, height in rows:
        with Image.open(DATA / name) as picture:
            assert picture.size == (int(width), int(height)), name


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_draw_it_again(command: str, tmp_path: Path) -> None:
    """The page's commands make the same truth, and the same pixels up to rounding of another Pillow
    version."""
    argv = [sys.executable, *shlex.split(command.replace("--out data", f"--out {tmp_path}"))]
    subprocess.run(argv, cwd=ROOT, check=True)
    made = sorted(tmp_path.iterdir())
    assert len(made) >= 3
    for path in made:
        if path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads((DATA / path.name).read_text())
            continue
        with Image.open(path) as again, Image.open(DATA / path.name) as committed:
            assert np.asarray(ImageChops.difference(again, committed)).mean() < 1


def test_the_crowded_picture_has_thirty_items() -> None:
    """The crowded picture has thirty items."""
    assert len(json.loads((DATA / "crowded_annotations.json").read_text())["annotations"]) == 30
