"""Converts a pickle checkpoint, or a base and an adapter, to a safetensors directory that can be served.

Pickles are opened in a separate process (`pickled.py`), never in this one. The result is checked as at the
start of a service. If the conversion fails, nothing is left behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor

from florence.checkpoint.config import read_config
from florence.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    MERGES,
    WEIGHTS,
    WEIGHTS_INDEX,
    read_json,
    weight_files,
)
from florence.checkpoint.hub import Checkpoint, resolve_adapter, resolve_checkpoint
from florence.checkpoint.layout import HEAD, checkpoint_name, is_transposed
from florence.checkpoint.preprocessing import read_preprocessing
from florence.checkpoint.repository import Repository
from florence.checkpoint.tokenizer import load_tokenizer
from florence.checkpoint.weights import AdapterFiles, Weights, open_weights, outline
from florence.errors import CheckpointError
from florence.model.config import ModelConfig
from florence.model.vision import Normalize

GIB = 2**30
PICKLED, PICKLED_INDEX, PICKLED_ADAPTER = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert. Names are as in `resolve_checkpoint`; `memory`: limit in bytes for the process that
    opens a pickle, in addition to what Python and torch take."""

    source: str
    revision: str | None = None
    base: str | None = None
    adapter: str | None = None
    memory: int = 16 * GIB


def convert(wanted: Conversion, out: Path) -> None:
    """Write a directory that can be served. Raises `CheckpointError`; `FileExistsError` where `out` has
    files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new or empty directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder)
        checkpoint = _find_checkpoint(wanted, work / "source")
        adapter = (
            None if wanted.adapter is None else _find_adapter(wanted.adapter, work / "adapter", wanted.memory)
        )
        made = work / "made"
        made.mkdir()
        _write(checkpoint, adapter, made)
        if out.exists():
            out.rmdir()
        made.rename(out)


def _find_checkpoint(wanted: Conversion, work: Path) -> Checkpoint:
    """The checkpoint with safetensors: its own, or converted from its pickles in the folder `work`."""
    found = _files_of(wanted.source, wanted.revision, ["*.json", MERGES, f"{PICKLED[:-4]}*.bin"])
    if found is None or weight_files(found) or not (pickles := _pickles(found)):
        return resolve_checkpoint(wanted.source, wanted.revision, wanted.base)
    work.mkdir()
    for file in (*found.glob("*.json"), *found.glob(MERGES)):
        if file.name not in (PICKLED_INDEX, WEIGHTS_INDEX):
            shutil.copyfile(file, work / file.name)
    open_pickles(pickles, work / WEIGHTS, wanted.memory)
    return resolve_checkpoint(str(work), None, wanted.base)


def _find_adapter(name: str, work: Path, memory: int) -> AdapterFiles:
    """The adapter's name and its directory, in safetensors."""
    found = _files_of(name, None, [ADAPTER_CONFIG, PICKLED_ADAPTER, ADAPTER_WEIGHTS, WEIGHTS])
    pickle = None if found is None else found / PICKLED_ADAPTER
    if found is None or pickle is None or not pickle.is_file() or (found / ADAPTER_WEIGHTS).is_file():
        adapter = resolve_adapter(name)
        return adapter.label, adapter.directory
    work.mkdir()
    shutil.copyfile(found / ADAPTER_CONFIG, work / ADAPTER_CONFIG)
    open_pickles([pickle], work / ADAPTER_WEIGHTS, memory)
    return name, work


def _files_of(name: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """The directory of a name, with the files that match these patterns; from a repository with safetensors
    no pickle is downloaded. None for `demo`, which `resolve_checkpoint` handles."""
    if Path(name).is_dir():
        return Path(name)
    if "/" not in name:
        return None
    asked = Repository.parse(name, revision)
    described = asked.fetch(["*.json"])
    pinned = replace(asked, revision=asked.commit_of(described))
    names = pinned.list_files()
    safe = any(each.endswith(".safetensors") for each in names)
    return pinned.fetch([each for each in patterns if not (safe and each.endswith(".bin"))])


def _pickles(directory: Path) -> list[Path]:
    """The pickle files with a checkpoint's weights, whether they exist or not."""
    if (directory / PICKLED).is_file():
        return [directory / PICKLED]
    if (index := directory / PICKLED_INDEX).is_file():
        shards = read_json(index).get("weight_map")
        names = sorted({Path(str(name)).name for name in shards.values()}) if isinstance(shards, dict) else []
        return [directory / name for name in names]
    return []


def open_pickles(files: Sequence[Path], out: Path, memory: int) -> None:
    """Write the tensors of pickle files into a safetensors file, in a process with `memory` bytes at most.
    Raises `CheckpointError`."""
    command = [sys.executable, "-m", "florence.convert.pickled", str(out), str(memory), *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode or not out.is_file():
        lines = run.stderr.strip().splitlines() or [f"the process that reads it ended with {run.returncode}"]
        raise CheckpointError(lines[-1])


def _write(checkpoint: Checkpoint, adapter: AdapterFiles | None, out: Path) -> None:
    """Write the checkpoint, with the adapter merged, after the checks of a service's start."""
    config = read_config(checkpoint.directory)
    preprocessing = read_preprocessing(checkpoint.preprocessor, STAND_IN_SIDE)
    tokenizer = load_tokenizer(checkpoint.tokenizer, config.text.vocab_size)
    normalize = Normalize(preprocessing.mean, preprocessing.std, preprocessing.rescale)
    state = outline(config, normalize, tokenizer.size).state_dict()
    with open_weights(checkpoint.directory, config, state, adapter) as weights:
        tensors = _tensors(weights)
        save_file(tensors, out / WEIGHTS, {"format": "pt"})
        for file in checkpoint.files:
            if file.suffix != ".safetensors" and file.name not in (WEIGHTS_INDEX, ADAPTER_CONFIG):
                shutil.copyfile(file, out / file.name)
        _note_head(config, weights, out / CONFIG)


STAND_IN_SIDE = 32
"""A placeholder for an input size that only FLORENCE_INPUT_SIZE gives."""


def _tensors(weights: Weights) -> dict[str, Tensor]:
    """All tensors by their names in the file's layout, in the file's dtypes."""
    tensors = {}
    for name, (file, source) in weights.sources.items():
        if name == HEAD and weights.tied:
            continue
        tensor = weights.read(name).to(file.get_tensor(source).dtype)
        tensor = tensor.T if is_transposed(name, weights.layout) else tensor
        tensors[checkpoint_name(name, weights.layout)] = tensor.contiguous()
    return tensors


def _note_head(config: ModelConfig, weights: Weights, path: Path) -> None:
    """Record in config.json that the head has a weight of its own, if an adapter gave it one."""
    if weights.tied or not config.text.tied_head:
        return
    values = read_json(path)
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
