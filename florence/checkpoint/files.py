"""The files that a checkpoint consists of. Knows names and JSON; knows nothing about tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from florence.errors import CheckpointError, quote

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ORIGIN = "florence_origin.json"  # in a Bento's copy: name and revision of the original

MAX_TEXT_BYTES = 64 * 2**20
"""Most bytes of a JSON or text file of a checkpoint; the largest known one has five million."""

_POINTER = b"version https://git-lfs"


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files: the single file, or the shards in the index, whether they exist or not;
    empty if there is neither.

    Raises `CheckpointError` for an index that can't be read or names files other than safetensors.
    """
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    index = directory / WEIGHTS_INDEX
    if not index.is_file():
        return []
    try:
        names = sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
    except (CheckpointError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} can't be read as an index of safetensors files: {error!r}") from error
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"{index} names files other than safetensors files beside it: {quote(', '.join(names))}"
        )
    return names


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that are read, sorted by name."""
    kept = [*weight_files(directory), MERGES]
    return sorted(
        file
        for file in directory.iterdir()
        if file.name in kept or (file.suffix == ".json" and file.name != ORIGIN)
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, with or without a byte order mark. Raises `CheckpointError` for a
    missing file or other contents."""
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deep") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, without its byte order mark. Raises `CheckpointError` where it is missing, too
    large, or not UTF-8."""
    try:
        check_content(path)
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; at most {MAX_TEXT_BYTES} are read")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None


def check_content(path: Path) -> None:
    """Raise `CheckpointError` for a missing file, and for a Git LFS pointer, left by a clone without Git
    LFS."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    if start == _POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or "
            "give the repository's name on the hub in place of the folder"
        )


def version_of(path: Path) -> tuple[int, ...]:
    """A value that changes when the file is modified or replaced (Kubernetes swaps a symbolic link); empty
    without a file."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
