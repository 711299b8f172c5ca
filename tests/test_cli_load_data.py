"""perf_analyzer's input: the files that `florence load-data` writes, and those in data/."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import ROOT

from florence.cli.load_data import load_data
from florence.types.tasks import TASKS, TRITON_TASKS, Input

Run = Callable[..., tuple[int, str, str]]
PICTURES = [b"\x89PNG some bytes", b"\xff\xd8 others"]


@pytest.mark.parametrize("token", TASKS)
def test_load_data_is_what_the_service_takes(token: str) -> None:
    """Each picture has one request whose inputs have one value of shape [1]; only tasks with an input have a
    text."""
    requests = load_data(PICTURES, TASKS.resolve(token), None)["data"]
    for picture, inputs in zip(PICTURES, requests, strict=True):
        assert base64.b64decode(inputs["INPUT_IMAGE"]["content"][0], validate=True) == picture
        assert inputs["TASK_PROMPT"] == {"content": [token], "shape": [1]}
        assert ("TEXT_PROMPT" in inputs) == (TASKS.resolve(token).input is not Input.NONE)
        assert all(len(value["content"]) == 1 and value["shape"] == [1] for value in inputs.values())


def test_a_file_for_each_task(florence: Run, tmp_path: Path) -> None:
    """Without --task there is a file for each of nine tasks, and the given text is used."""
    picture = ROOT / "data" / "scene_02.png"
    status, out, _ = florence("load-data", picture, "--out", tmp_path / "nine", "--text", "a red star")
    assert status == 0
    names = [f"load_data_{token.strip('<>')}.json" for token in TRITON_TASKS]
    assert out.splitlines() == [str(tmp_path / "nine" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "nine").iterdir()) == sorted(names)
    grounding = tmp_path / "nine" / "load_data_CAPTION_TO_PHRASE_GROUNDING.json"
    assert json.loads(grounding.read_text())["data"][0]["TEXT_PROMPT"]["content"] == ["a red star"]
    florence("load-data", picture, "--out", tmp_path / "two", "--task", "ocr", "--task", "<REGION_TO_OCR>")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "load_data_OCR.json",
        "load_data_REGION_TO_OCR.json",
    }


def test_files_go_into_a_directory_of_their_own(
    florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out the files go into a directory of their own."""
    monkeypatch.chdir(tmp_path)
    florence("load-data", ROOT / "data" / "scene_02.png", "--task", "ocr")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")] == [
        "load-data/load_data_OCR.json"
    ]


def test_mistakes_write_nothing(florence: Run, tmp_path: Path) -> None:
    """An unknown task, a missing picture and a file that is not a picture are errors; no file is written."""
    out = tmp_path / "out"
    status, _, err = florence("load-data", ROOT / "data", "--out", out, "--task", "ocr", "--task", "<FOO>")
    assert (status, out.exists()) == (2, False)
    assert "<FOO>" in err
    assert florence("load-data", "no/such/*.png", "--out", out)[0] == 2
    status, _, err = florence("load-data", ROOT / "README.md", "--out", out)
    assert (status, out.exists()) == (2, False)
    assert "README.md is not a picture" in err


@pytest.mark.parametrize("token", TRITON_TASKS)
def test_the_repositorys_load_data_hold_its_crowded_picture(token: str) -> None:
    """The files in data/ are what the command makes of the crowded picture."""
    content = json.loads((ROOT / "data" / f"load_data_{token.strip('<>')}.json").read_text())
    text = content["data"][0].get("TEXT_PROMPT", {"content": [None]})["content"][0]
    picture = (ROOT / "data" / "crowded_00.jpg").read_bytes()
    assert content == load_data([picture], TASKS.resolve(token), text)
