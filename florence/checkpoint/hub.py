"""A checkpoint's name to a directory with its files.

A name is `demo` (the small checkpoint in the package), a directory, or a repository of the hub (`owner/name`,
with an optional revision). Of a repository only JSON and safetensors files and `merges.txt` are downloaded:
never code, never pickle. The hub library's own variables apply: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT,
HF_TOKEN.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from florence.checkpoint.files import (
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
    missing_weights,
    weight_files,
)
from florence.errors import CheckpointError

DEMO = "demo"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Each row: alternative sets of files, one of which has to be there.
_NEEDED: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((CONFIG,),),
    ((TOKENIZER,), (VOCAB, MERGES)),
    ((PREPROCESSOR,), (PROCESSOR,)),
)

_CONVERT = (
    "pickle is never opened here, since it can run code. Take the same model as safetensors, "
    "mrhendrey/Florence-2-large-ft-safetensors or florence-community/Florence-2-large-ft, or convert it "
    "where you trust it: load it with transformers, then save_pretrained(..., safe_serialization=True)"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint's files are. `revision`: the commit, for a repository of the hub."""

    name: str
    revision: str | None
    directory: Path

    @property
    def short_name(self) -> str:
        """The name; of a directory the last part of its path."""
        return self.name if self.revision or self.name == DEMO else Path(self.name).resolve().name

    @property
    def label(self) -> str:
        """The name in answers and log lines: `owner/name@1a2b3c4d5e6f`, `demo`, or the directory."""
        return self.name if self.revision is None else f"{self.name}@{self.revision[:12]}"


def resolve_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint of this name, downloaded to the hub's cache if it is not there.

    `demo` always means the one in the package; a directory of that name is `./demo`. A directory made by
    `copy_checkpoint` has the name and revision of its original. Raises `CheckpointError` when the checkpoint
    can't be found or downloaded, lacks a file, or has its weights as pickle only; the message says what to
    do.
    """
    if name != DEMO and not (name and Path(name).is_dir()):
        return _from_hub(name, revision)
    if revision is not None:
        raise CheckpointError(
            f"{name!r} has no revisions: only repositories of the hub have ({revision!r} was asked)"
        )
    demo = Path(str(importlib.resources.files("florence") / "demo" / "checkpoint"))
    directory = demo if name == DEMO else Path(name)
    _check_described(directory, name)
    if not _check_weights(directory, name):
        raise CheckpointError(_without_weights(name, pickled=any(directory.glob("*.bin"))))
    if name != DEMO and (directory / ORIGIN).is_file():
        return _of_origin(directory)
    return Checkpoint(name, None, directory)


def copy_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the files of a checkpoint that are read into a directory, and note its name and revision there."""
    for file in checkpoint_files(checkpoint.directory):
        shutil.copyfile(file, target / file.name)  # the hub's cache holds links
    origin = {"name": checkpoint.short_name, "revision": checkpoint.revision}
    (target / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


def _of_origin(directory: Path) -> Checkpoint:
    try:
        origin = json.loads((directory / ORIGIN).read_text(encoding="utf-8"))
        name, revision = origin["name"], origin["revision"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{directory / ORIGIN} can't be read: {error}") from error
    return Checkpoint(str(name), revision and str(revision), directory)


def _from_hub(name: str, revision: str | None) -> Checkpoint:
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"there is no checkpoint {name!r}: expected a directory, a repository of the hub such as "
            f"florence-community/Florence-2-large-ft, or {DEMO}"
        )
    # First the small files: other repositories than Florence-2 are refused before weights are downloaded.
    directory = _fetch(name, revision, ["*.json", MERGES])
    _check_described(directory, name)
    commit = directory.name  # so that both calls get the same commit
    _fetch(name, commit, weight_files(directory) or [WEIGHTS])
    if not _check_weights(directory, name):
        with _hub_errors(name, revision):
            pickled = any(file.endswith(".bin") for file in HfApi().list_repo_files(name, revision=commit))
        raise CheckpointError(_without_weights(name, pickled=pickled))
    return Checkpoint(name, commit, directory)


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    with _hub_errors(name, revision):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        )


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn the hub library's errors into a `CheckpointError` that says what the user can do."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"the repository {name} is gated: accept its terms on its page, then set HF_TOKEN to your token"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the repository {name} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub ({constants.ENDPOINT}) has no repository {name}, or it is private: "
            "check the spelling, or set HF_TOKEN to a token that may read it"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        unreachable = f"the hub ({constants.ENDPOINT}) can't be reached"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable
        raise CheckpointError(
            f"{name} can't be loaded: {why}, and the cache ({constants.HF_HUB_CACHE}) has no complete copy. "
            "Without the hub there are two ways out: give a local directory that holds the checkpoint, "
            "or set FLORENCE_MODEL=demo for the small one that comes with florence"
        ) from error
    except Exception as error:  # the HTTP library under the hub's differs between its versions
        raise CheckpointError(
            f"the download of {name} from the hub ({constants.ENDPOINT}) did not finish: {error}. "
            "Files that were finished are kept: run the same again to fetch the rest"
        ) from error


def _check_described(directory: Path, name: str) -> None:
    """Raise `CheckpointError` unless configuration, tokenizer and preprocessing are there."""
    missing = [
        " or ".join(" with ".join(files) for files in choices)
        for choices in _NEEDED
        if not any(all((directory / file).is_file() for file in files) for files in choices)
    ]
    if missing:
        raise CheckpointError(f"{name} is not a whole Florence-2 checkpoint: it lacks {', '.join(missing)}")


def _check_weights(directory: Path, name: str) -> bool:
    """Whether there are weights. Raises `CheckpointError` when a shard is missing."""
    if missing := missing_weights(directory):
        raise CheckpointError(
            f"{name} is not a whole Florence-2 checkpoint: it lacks {', '.join(missing)}, "
            f"which {WEIGHTS_INDEX} names"
        )
    return bool(weight_files(directory))


def _without_weights(name: str, *, pickled: bool) -> str:
    if pickled:
        return f"{name} has its weights as pickle (.bin) only: {_CONVERT}"
    return f"{name} is not a whole Florence-2 checkpoint: it lacks {WEIGHTS}, and {WEIGHTS_INDEX} with shards"
