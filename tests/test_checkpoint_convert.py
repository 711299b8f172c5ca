"""`florence convert`: the directories that it makes answer as their sources do, and a pickle runs no code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import ROBOFLOW, WEIGHTS, make_adapter
from hub_machines import Machine
from hub_server import HubServer, Repository
from layouts import DEMO, native_tensors, original, original_tensors
from peft import LoraConfig
from safetensors.torch import load_file
from serving import ROOT
from transformers import Florence2ForConditionalGeneration

from florence import Florence2
from florence.answers.answer import Answer
from florence.cli import main
from florence.convert import pickled as program
from florence.convert.convert import GIB, open_pickles
from florence.convert.pickled import named_tensors, plain
from florence.errors import CheckpointError

PICTURE = ROOT / "data" / "busy_00.jpg"


def ask(name: Path | str, **options: Any) -> Answer:
    """The model's answer about the picture."""
    with Florence2.load(str(name), device="cpu", dtype="float32", threads=1, **options) as model:
        return model.run(PICTURE, "<OD>")


@pytest.fixture(scope="module")
def demo() -> Answer:
    """The demo's answer."""
    return ask("demo")


def pickled(directory: Path) -> Path:
    """Write Microsoft's layout with its weights only as a pickle, including tied names."""
    original(directory)
    (directory / "model.safetensors").unlink()
    tensors = {name: tensor.half() for name, tensor in original_tensors().items()}
    shared = tensors["language_model.model.shared.weight"]
    tied = {f"language_model.model.{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")}
    torch.save(tensors | tied | {"language_model.lm_head.weight": shared}, directory / "pytorch_model.bin")
    return directory


def in_shards(directory: Path) -> Path:
    """Write the pickled layout in two shards."""
    pickled(directory)
    whole = torch.load(directory / "pytorch_model.bin", weights_only=True)
    names = list(whole)
    shard_of = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(names)}
    for shard in set(shard_of.values()):
        torch.save({name: whole[name] for name in names if shard_of[name] == shard}, directory / shard)
    (directory / "pytorch_model.bin").unlink()
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return directory


def of_a_trainer(directory: Path) -> Path:
    """Write a trainer's pickle: weights under a key beside other content, with DDP's prefix, in the older
    format without a zip."""
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("model.safetensors"))
    state = {f"module.{name}": tensor for name, tensor in native_tensors().items()}
    content = {"epoch": 3, "state_dict": state}
    torch.save(content, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("make", [in_shards, of_a_trainer])
def test_a_checkpoint_as_pickle_becomes_one_that_serves(
    tmp_path: Path, demo: Answer, make: Callable[[Path], Path]
) -> None:
    """A pickled checkpoint is converted into a directory with the same answers; no other files are left."""
    source, out = make(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(CheckpointError):
        ask(source)
    assert main(["convert", str(source), str(out)]) == 0
    assert ask(out).token_ids == demo.token_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert not list(out.glob("*.bin*"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small adapter of the demo checkpoint that also changes head and tower."""
    directory = tmp_path_factory.mktemp("adapter")
    native = Florence2ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=[*ROBOFLOW, "qkv"])
    make_adapter(native, config, directory)
    return directory


def labels(answer: Answer) -> list[str]:
    """The labels of an answer's detections."""
    return [item.label for item in answer.result.detections]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["native", "original"])
def test_base_and_adapter_become_one_checkpoint(
    tmp_path: Path, adapter: Path, demo: Answer, layout: str
) -> None:
    """A converted base and adapter answer as the base does with the adapter merged at load."""
    base = str(original(tmp_path / "base")) if layout == "original" else "demo"
    merged = ask(base, adapter=str(adapter))
    assert main(["convert", base, str(tmp_path / "out"), "--adapter", str(adapter)]) == 0
    again = ask(tmp_path / "out")
    assert merged.raw_text != demo.raw_text
    if base == "demo":  # the demo's weights are float16, so the merge is rounded and a location may change
        assert labels(again) == labels(merged)
    else:
        assert again.token_ids == merged.token_ids
        assert again.token_logprobs == pytest.approx(merged.token_logprobs, abs=1e-4)
    assert merged.checkpoint == f"{base} + {adapter}"


@pytest.mark.slow
def test_an_adapter_as_pickle_is_merged(tmp_path: Path, adapter: Path) -> None:
    """An adapter pickled by an older PEFT is merged like its safetensors form; the service refuses it and
    names the command."""
    older = tmp_path / "older"
    shutil.copytree(adapter, older)
    torch.save(load_file(older / WEIGHTS), older / "adapter_model.bin")
    (older / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="`florence convert --adapter` reads that"):
        ask("demo", adapter=str(older))
    for name, source in (("one", adapter), ("two", older)):
        assert main(["convert", "demo", str(tmp_path / name), "--adapter", str(source)]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_source_lacks_comes_from_a_base(tmp_path: Path, demo: Answer) -> None:
    """Files that the source lacks are taken from a base."""
    source = original(tmp_path / "source", bare=True)
    assert main(["convert", str(source), str(tmp_path / "out"), "--base", "demo"]) == 0
    assert ask(tmp_path / "out").token_ids == demo.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("safe", [False, True])
def test_a_repository_is_converted(tmp_path: Path, demo: Answer, safe: bool) -> None:
    """A repository's pickle is downloaded only if it has no safetensors; the converted checkpoint answers as
    the demo."""
    source = pickled(tmp_path / "source")
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    if safe:
        files["model.safetensors"] = (original(tmp_path / "safe") / "model.safetensors").read_bytes()
    out = tmp_path / "out"
    with (
        HubServer({"someone/pickled": Repository({"main": files})}) as hub,
        Machine(tmp_path / "hub", hub.endpoint).library(),
    ):
        assert main(["convert", "someone/pickled", str(out)]) == 0
        assert ("pytorch_model.bin" in hub.downloads()) is not safe
    assert ask(out).token_ids == demo.token_ids


class Payload:
    """An object that runs a command when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.slow
def test_a_pickle_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that would run a command is refused in one line, and the command does not run."""
    source, mark = pickled(tmp_path / "source"), tmp_path / "mark"
    torch.save({"weight": Payload(mark)}, source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "out")]) == 1
    assert "can't be read as tensors and nothing else" in capsys.readouterr().err
    assert not mark.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.slow
def test_a_pickle_that_unfolds_into_more_memory_than_allowed_is_refused(tmp_path: Path) -> None:
    """A pickle of a kilobyte that expands to sixteen gigabytes is stopped by the memory limit."""
    bomb = tmp_path / "bomb.bin"
    torch.save({"weight": torch.zeros(1).expand(2**32)}, bomb)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"takes more than the 1073741824 bytes of memory allowed"):
        open_pickles([bomb], tmp_path / "out.safetensors", GIB)


def test_what_is_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was cut off is refused by name, in the last line of the process that reads it."""
    for limit in ("limit", "limit_memory"):
        monkeypatch.setattr(program, limit, lambda *_, **__: None)  # this process keeps its own
    file = tmp_path / "weights.bin"
    file.write_bytes(b"PK\x03\x04 cut")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "out.safetensors"), str(GIB), str(file)])
    with pytest.raises(SystemExit, match=r"weights\.bin can't be read as tensors and nothing else"):
        program.main()


def test_the_process_that_opens_pickles_has_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is what Python needs to run; secrets such as the hub's token stay out."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    passed: dict[str, str] = {}

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        passed.update(env)
        return subprocess.CompletedProcess([], 1, "", "refused")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CheckpointError, match="refused"):
        open_pickles([tmp_path / "weights.bin"], tmp_path / "out.safetensors", GIB)
    assert "PATH" in passed
    assert "secret" not in passed.values()


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"name": "no tensor"}}])
def test_what_holds_no_tensors_is_refused(content: object) -> None:
    """Content without named tensors is refused."""
    with pytest.raises(ValueError, match="without named tensors"):
        named_tensors(content)


def test_tied_tensors_are_written_once_and_views_alone() -> None:
    """Tied tensors are written once, and a view is written with its own numbers only."""
    whole = torch.arange(12.0).view(3, 4)
    kept = plain({"one": whole, "two": whole, "row": whole[1], "turned": whole.T})
    assert list(kept) == ["one", "row", "turned"]
    assert torch.equal(kept["row"], whole[1])
    assert kept["row"].untyped_storage().nbytes() == 16
    assert torch.equal(kept["turned"], whole.T)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that exists is refused and stays unchanged."""
    (tmp_path / "mine.txt").write_text("kept")
    assert main(["convert", "demo", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
