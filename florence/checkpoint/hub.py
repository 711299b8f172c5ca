"""A checkpoint's name to a directory that holds its files.

A name is `demo` (the small checkpoint that comes with the package), a directory, or a repository of the hub
(`owner/name`, with a revision). Of a repository only JSON and safetensors files and `merges.txt` are asked
for: never code, never pickle. The hub's own variables are honoured: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT,
HF_TOKEN.

Knows which files there are, not what is in them (the shards' names apart).
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

from florence.errors import CheckpointError

DEMO = "demo"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MERGES = "merges.txt"  # the tokenizer's, beside vocab.json
ORIGIN = "florence_origin.json"  # in a packed copy: where it came from

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Each row: files of which one set has to be there.
_NEEDED: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("config.json",),),
    (("tokenizer.json",), ("vocab.json", MERGES)),
    (("preprocessor_config.json",), ("processor_config.json",)),
)

_CONVERT = (
    "pickle is never opened here, since it can run code. Take the same model as safetensors, "
    "mrhendrey/Florence-2-large-ft-safetensors or florence-community/Florence-2-large-ft, or convert it "
    "where you trust it: load it with transformers, then save_pretrained(..., safe_serialization=True)"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint lies. `revision`: the commit, for those from the hub."""

    name: str
    revision: str | None
    directory: Path

    @property
    def short_name(self) -> str:
        """The name without the folders that a directory lies in."""
        return self.name if self.revision or self.name == DEMO else Path(self.name).resolve().name

    @property
    def label(self) -> str:
        """What answers and log lines call it: `owner/name@1a2b3c4d5e6f`, `demo`, or the directory's name."""
        return self.name if self.revision is None else f"{self.name}@{self.revision[:12]}"


def resolve_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint of this name, downloaded to the hub's cache if it is not there.

    `demo` always means the packaged one; a directory of that name is `./demo`. A copy by `copy_checkpoint`
    goes by the name and revision of what it was made of. Raises CheckpointError when it can't be found or
    fetched, lacks a file, or has its weights as pickle only, and says what to do.
    """
    if name != DEMO and not (name and Path(name).is_dir()):
        return _from_hub(name, revision)
    if revision is not None:
        raise CheckpointError(
            f"{name!r} has no revisions: only repositories of the hub have ({revision!r} was asked)"
        )
    if name == DEMO:
        directory = Path(str(importlib.resources.files("florence") / "demo" / "checkpoint"))
    else:
        directory = Path(name)
    _check_described(directory, name)
    if not _check_weights(directory, name):
        raise CheckpointError(_without_weights(name, pickled=any(directory.glob("*.bin"))))
    if name != DEMO and (directory / ORIGIN).is_file():
        return _of_origin(directory)
    return Checkpoint(name, None, directory)


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that are read, in the order of their names."""
    weights = [WEIGHTS] if (directory / WEIGHTS).is_file() else _shards(directory)
    kept = [*weights, MERGES]
    return sorted(
        file
        for file in directory.iterdir()
        if file.name in kept or (file.suffix == ".json" and file.name != ORIGIN)
    )


def copy_checkpoint(checkpoint: Checkpoint, target: Path) -> None:
    """Copy what is read of a checkpoint into a directory, with a note of where it came from."""
    for file in checkpoint_files(checkpoint.directory):
        shutil.copyfile(file, target / file.name)  # a hub's cache has links in its place
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
    # First the small files: a repository that is no Florence-2 is found out before its weights are fetched.
    directory = _fetch(name, revision, ["*.json", MERGES])
    _check_described(directory, name)
    commit = directory.name  # so that both calls get the same commit
    _fetch(name, commit, _shards(directory) or [WEIGHTS])
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
    """What the hub's library raises, told in terms of what the user can do."""
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
        why = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"the hub ({constants.ENDPOINT}) can't be reached"
        )
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
    """Whether the small files are there: configuration, tokenizer, preprocessing."""
    missing = [
        " or ".join(" with ".join(files) for files in choices)
        for choices in _NEEDED
        if not any(all((directory / file).is_file() for file in files) for files in choices)
    ]
    if missing:
        raise CheckpointError(f"{name} is not a whole Florence-2 checkpoint: it lacks {', '.join(missing)}")


def _check_weights(directory: Path, name: str) -> bool:
    """Whether there are weights; raises CheckpointError when some of several shards are missing."""
    shards = _shards(directory)
    if not shards or (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS).is_file()
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{name} is not a whole Florence-2 checkpoint: it lacks {', '.join(missing)}, "
            f"which {WEIGHTS_INDEX} names"
        )
    return True


def _shards(directory: Path) -> list[str]:
    """The files that the index of a sharded checkpoint names; none when there is no index."""
    index = directory / WEIGHTS_INDEX
    if not index.is_file():
        return []
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(shard) for shard in shards})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} can't be read: {error}") from error
    if any(Path(shard).name != shard or not shard.endswith(".safetensors") for shard in names):
        raise CheckpointError(
            f"{index} names files other than safetensors files beside it: {', '.join(names)}"
        )
    return names


def _without_weights(name: str, *, pickled: bool) -> str:
    if pickled:
        return f"{name} has its weights as pickle (.bin) only: {_CONVERT}"
    return f"{name} is not a whole Florence-2 checkpoint: it lacks {WEIGHTS}, and {WEIGHTS_INDEX} with shards"
