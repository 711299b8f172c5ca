"""A checkpoint's weights in a Bento, by way of BentoML's model store, and out of it again at start.

`bentoml build` asks a service's model references what to pack. `CheckpointModel` answers by finding the
checkpoint that FLORENCE_MODEL names (a download, if it is a hub id), copying its files into the store and
naming them by an alias. In a Bento that was built so, the alias leads to the copy, and no hub is asked.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from florence.checkpoint.hub import COPIES, Checkpoint, copy_checkpoint, resolve_checkpoint
from florence.errors import CheckpointError
from florence.settings import Settings

ALIAS = "florence-packed-checkpoint"
_LONGEST_NAME = 63  # of BentoML's tags


class CheckpointModel(bentoml.models.BentoModel):  # type: ignore[misc]  # BentoML makes its types lazily
    """The checkpoint of a name and revision, with what it lacks from `base`, for `bentoml build` to pack.
    Serving does not need it."""

    def __init__(self, name: str, revision: str | None, base: str | None = None) -> None:
        super().__init__(tag=ALIAS)  # the real one is known when the checkpoint is found
        object.__setattr__(self, "_wanted", (name, revision, base))  # BentoML's class is frozen

    def to_info(self, alias: str | None = None) -> Any:
        """Put the checkpoint into the store; what the Bento's description says of it."""
        try:
            stored = store_checkpoint(resolve_checkpoint(*self._wanted))
        except CheckpointError as error:
            raise BentoMLException(str(error)) from error  # `bentoml build` shows its own as one sentence
        return bentoml.models.BentoModel(stored.tag).to_info(alias or ALIAS)

    def resolve(self, *_: object, **__: object) -> None:
        """Nothing: what is not in a Bento finds its checkpoint by name."""


def store_checkpoint(checkpoint: Checkpoint) -> Any:
    """A copy of the checkpoint in BentoML's model store: the one that is there, if its files are the same."""
    tag = f"{_store_name(checkpoint.short_name)}:{_digest(checkpoint)}"
    try:
        return bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag) as model:
            copy_checkpoint(checkpoint, Path(model.path))
        return bentoml.models.get(tag)


def packed_settings(settings: Settings) -> Settings:
    """The settings with the packed checkpoint in the place of its name, in a Bento that has one.

    FLORENCE_MODEL and FLORENCE_REVISION still pick any other checkpoint.
    """
    directory = _packed_directory()
    if directory is None:
        return settings
    packed = resolve_checkpoint(str(directory))
    name = settings.model if "model" in settings.model_fields_set else packed.name
    if packed.name in (name, COPIES.get(name)) and settings.revision in (None, packed.revision):
        return settings.model_copy(update={"model": str(directory), "revision": None})
    return settings.model_copy(update={"model": name})


def _packed_directory() -> Path | None:
    """Where the packed checkpoint lies, if this process serves a Bento that has one."""
    try:
        return Path(bentoml.models.get(ALIAS).path)
    except NotFound:
        return None


def _store_name(name: str) -> str:
    """`Owner/Name` as a name that BentoML's store takes: `owner--name`."""
    plain = re.sub(r"[^a-z0-9._-]", "-", name.lower().replace("/", "--"))
    return plain[:_LONGEST_NAME].strip("-._") or "checkpoint"


def _digest(checkpoint: Checkpoint) -> str:
    """The same for the same commit, names and bytes of files."""
    digest = hashlib.sha256(f"{checkpoint.revision}\n".encode())
    for file in checkpoint.files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()[:16]
