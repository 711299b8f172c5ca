"""Resolves a checkpoint's or an adapter's name to a directory with its files.

A name is `demo` (the small checkpoint in the package), a directory, or a repository of the hub: `owner/name`,
`owner/name@revision`, `owner/name:folder`, `owner/name@revision:folder`. From a repository only JSON and
safetensors files and `merges.txt` are downloaded: never code, never pickle. The hub library's own variables
apply: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import importlib.resources
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from florence.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    MERGES,
    ORIGIN,
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER,
    VOCAB,
    WEIGHTS,
    WEIGHTS_INDEX,
    checkpoint_files,
    read_json,
    weight_files,
)
from florence.checkpoint.foreign import explain_files, is_adapter
from florence.checkpoint.repository import Repository
from florence.errors import CheckpointError, RepositoryError
from florence.types.declared import TASKS_FILE

log = logging.getLogger(__name__)

DEMO = "demo"

COPIES: dict[str, str] = {"microsoft/Florence-2-large-ft": "mrhendrey/Florence-2-large-ft-safetensors"}
"""Repository -> one with the same weights as safetensors, used if the first has none."""

Choices = tuple[tuple[str, ...], ...]
"""Alternative sets of files, one of which must exist."""

CONFIG_FILES: Choices = ((CONFIG,),)
TOKENIZER_FILES: Choices = ((TOKENIZER,), (VOCAB, MERGES))
PREPROCESSOR_FILES: Choices = ((PREPROCESSOR,), (PROCESSOR,))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint's files are. `revision`: the commit, for a repository of the hub. `base`: a
    directory with the tokenizer or the preprocessor that `directory` lacks; None if it lacks neither."""

    name: str
    revision: str | None
    directory: Path
    base: Path | None = None

    @property
    def short_name(self) -> str:
        """The name; for a directory the last part of its path."""
        return self.name if self.revision or self.name == DEMO else Path(self.name).resolve().name

    @property
    def label(self) -> str:
        """The name in answers and log lines: `owner/name@1a2b3c4d5e6f`, `demo`, or the directory."""
        return self.name if self.revision is None else f"{self.name}@{self.revision[:12]}"

    @property
    def tokenizer(self) -> Path:
        """The directory that has the tokenizer."""
        return self._holder(TOKENIZER_FILES)

    @property
    def preprocessor(self) -> Path:
        """The directory that has the preprocessor's settings."""
        return self._holder(PREPROCESSOR_FILES)

    @property
    def files(self) -> list[Path]:
        """All files that are read, sorted by name."""
        files = checkpoint_files(self.directory)
        for holder, choices in ((self.tokenizer, TOKENIZER_FILES), (self.preprocessor, PREPROCESSOR_FILES)):
            if holder != self.directory:
                files += [holder / name for names in choices for name in names if (holder / name).is_file()]
        return sorted(set(files), key=lambda file: file.name)

    def _holder(self, choices: Choices) -> Path:
        return self.base if self.base and not _has(self.directory, choices) else self.directory


def resolve_checkpoint(name: str, revision: str | None = None, base: str | None = None) -> Checkpoint:
    """The checkpoint with this name, downloaded to the hub's cache if needed.

    `demo` always means the one in the package; write `./demo` for a directory of that name. A directory made
    by `copy_checkpoint` has the name and revision of its original. `base`: another name, whose tokenizer and
    preprocessor are used if the checkpoint has none. Raises `CheckpointError` if the checkpoint can't be
    found or downloaded, lacks a file, has a foreign format, or has its weights as pickle only; the message
    says what to do.
    """
    if name != DEMO and not (name and Path(name).is_dir()):
        try:
            return _from_hub(name, revision, base)
        except RepositoryError:
            if name not in COPIES:
                raise
            with suppress(RepositoryError):
                copy = _from_hub(COPIES[name], revision, base)
                log.warning("%s has no safetensors here; taking %s, the same weights", name, copy.label)
                return copy
            raise
    if revision is not None:
        raise CheckpointError(
            f"{name!r} has no revisions: only repositories of the hub have ({revision!r} was asked)"
        )
    directory = _directory_of(name)
    found = _base_of(directory, base)
    _check_described(directory, name, found, lambda: _names_in(directory))
    if not _check_weights(directory, name):
        raise _without_weights(name, directory, _names_in(directory))
    if name != DEMO and (directory / ORIGIN).is_file():
        return _of_origin(directory)
    return Checkpoint(name, None, directory, found)


def resolve_adapter(name: str) -> Checkpoint:
    """The LoRA adapter with this name, a directory or a repository of the hub, found as in
    `resolve_checkpoint`. Its file may have the name of a full model's file. Raises `CheckpointError`."""
    if name and Path(name).is_dir():
        found = Checkpoint(name, None, Path(name))
    else:
        asked = Repository.parse(name)
        directory = asked.fetch([ADAPTER_CONFIG, ADAPTER_WEIGHTS, TASKS_FILE])
        commit = asked.commit_of(directory)
        if (directory / ADAPTER_CONFIG).is_file() and not is_adapter(directory):
            directory = replace(asked, revision=commit).fetch([WEIGHTS])
        found = Checkpoint(asked.name, commit, directory)
    if not (found.directory / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"the adapter {name} lacks {ADAPTER_CONFIG}, without which its tensors can't be scaled"
        )
    if not (is_adapter(found.directory) or (found.directory / WEIGHTS).is_file()):
        raise CheckpointError(
            f"the adapter {name} lacks {ADAPTER_WEIGHTS}; where it has adapter_model.bin instead, "
            "`florence convert --adapter` reads that"
        )
    return found


def copy_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    """Copy all files of a checkpoint that are read into a directory, and record its name and revision
    there."""
    for file in checkpoint.files:
        shutil.copyfile(file, target / file.name)  # files in the hub's cache are links
    origin = {"name": checkpoint.short_name, "revision": checkpoint.revision}
    (target / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


def _directory_of(name: str) -> Path:
    demo = Path(str(importlib.resources.files("florence") / "demo" / "checkpoint"))
    return demo if name == DEMO else Path(name)


def _names_in(directory: Path) -> list[str]:
    return [str(file.relative_to(directory)) for file in (*directory.glob("*"), *directory.glob("*/*"))]


def _of_origin(directory: Path) -> Checkpoint:
    try:
        origin = read_json(directory / ORIGIN)
        name, revision = origin["name"], origin["revision"]
    except (CheckpointError, LookupError) as error:
        raise CheckpointError(f"{directory / ORIGIN} can't be read: {error}") from error
    return Checkpoint(str(name), revision and str(revision), directory)


def _from_hub(name: str, revision: str | None, base: str | None) -> Checkpoint:
    asked = Repository.parse(name, revision)
    # First the small files, so that repositories other than Florence-2 are refused before weights are
    # downloaded.
    directory = asked.fetch(["*.json", MERGES])
    found = replace(asked, revision=asked.commit_of(directory))  # all downloads use the same commit
    described = _base_of(directory, base)
    _check_described(directory, name, described, found.list_files)
    found.fetch(weight_files(directory) or [WEIGHTS])
    if not _check_weights(directory, name):
        raise _without_weights(name, directory, found.list_files())
    return Checkpoint(found.name, found.revision, directory, described)


def _base_of(directory: Path, base: str | None) -> Path | None:
    """The directory of the checkpoint `base`; None where it is not needed. From a repository only the small
    files are downloaded."""
    needed = [choices for choices in (TOKENIZER_FILES, PREPROCESSOR_FILES) if not _has(directory, choices)]
    if base is None or not needed or not (directory / CONFIG).is_file():
        return None
    if base == DEMO or Path(base).is_dir():
        found = _directory_of(base)
    else:
        wanted = [name for choices in needed for names in choices for name in names]
        found = Repository.parse(base).fetch(wanted)
    if missing := _missing(found, needed):
        raise CheckpointError(f"the base {base} lacks {missing}")
    return found


def _has(directory: Path, choices: Choices) -> bool:
    return any(all((directory / file).is_file() for file in files) for files in choices)


def _missing(directory: Path, needed: Sequence[Choices]) -> str:
    """The missing files of a directory, in words; "" for none."""
    return ", ".join(
        " or ".join(" with ".join(files) for files in choices)
        for choices in needed
        if not _has(directory, choices)
    )


def _check_described(directory: Path, name: str, base: Path | None, listing: Callable[[], list[str]]) -> None:
    """Raise `CheckpointError` unless configuration, tokenizer and preprocessing are in the directory or in
    the base."""
    needed = [CONFIG_FILES] if base else [CONFIG_FILES, TOKENIZER_FILES, PREPROCESSOR_FILES]
    missing = _missing(directory, needed)
    if not missing:
        return
    hint = "; FLORENCE_BASE may name the checkpoint that it was made from, which has the rest"
    if not _has(directory, CONFIG_FILES):
        hint = ""
        if words := explain_files(directory, listing()):
            raise CheckpointError(f"{name} {words}")
    raise CheckpointError(f"{name} is not a whole Florence-2 checkpoint: it lacks {missing}{hint}")


def _check_weights(directory: Path, name: str) -> bool:
    """Whether there are weights. Raises `CheckpointError` when a shard is missing."""
    names = weight_files(directory)
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise CheckpointError(
            f"{name} is not a whole Florence-2 checkpoint: it lacks {', '.join(missing)}, "
            f"which {WEIGHTS_INDEX} names"
        )
    return bool(names)


def _without_weights(name: str, directory: Path, names: Sequence[str]) -> CheckpointError:
    if words := explain_files(directory, names):
        return RepositoryError(f"{name} {words}")
    return RepositoryError(
        f"{name} is not a whole Florence-2 checkpoint: it lacks {WEIGHTS}, and {WEIGHTS_INDEX} with shards"
    )
