"""Packs a checkpoint's weights into a Bento by way of BentoML's model store, and finds them there at start.

`bentoml build` asks a service's model references what to pack. `CheckpointModel` answers by finding the
checkpoint that FLORENCE_MODEL names (a download, if it is a hub id), copying its files into the store and
giving the copy an alias. In a Bento built this way the alias leads to the copy, and nothing is downloaded.
Knows nothing about the container image.
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
_MAX_NAME_CHARS = 63  # characters in the name of a BentoML tag


class CheckpointModel(bentoml.models.BentoModel):  # type: ignore[misc]  # BentoML makes its types lazily
    """The checkpoint that `bentoml build` packs: `name` at `revision`, with the files that it lacks from
    `base`.

    Serving does not use it.
    """

    def __init__(self, name: str, revision: str | None, base: str | None = None) -> None:
        super().__init__(tag=ALIAS)  # the real tag is known once the checkpoint is found
        object.__setattr__(self, "_wanted", (name, revision, base))  # BentoML's class is frozen

    def to_info(self, alias: str | None = None) -> Any:
        """Put the checkpoint into the store; returns its entry in the Bento's description. Raises
        BentoMLException where the checkpoint can't be found or read."""
        try:
            stored = store_checkpoint(resolve_checkpoint(*self._wanted))
        except CheckpointError as error:
            raise BentoMLException(str(error)) from error  # `bentoml build` prints these in one line
        return bentoml.models.BentoModel(stored.tag).to_info(alias or ALIAS)

    def resolve(self, *_: object, **__: object) -> None:
        """Does nothing: outside a Bento the checkpoint is found by its name."""


def store_checkpoint(checkpoint: Checkpoint) -> Any:
    """The checkpoint's copy in BentoML's model store; an existing copy of the same files is reused."""
    tag = f"{_store_name(checkpoint.short_name)}:{_digest(checkpoint)}"
    try:
        return bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag) as model:
            copy_checkpoint(checkpoint, Path(model.path))
        return bentoml.models.get(tag)


def packed_settings(settings: Settings) -> Settings:
    """The settings, with the packed checkpoint's directory as `model` in a Bento that has one.

    FLORENCE_MODEL and FLORENCE_REVISION can still name another checkpoint.
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
    """The packed checkpoint's directory; None unless this process serves a Bento that has one."""
    try:
        return Path(bentoml.models.get(ALIAS).path)
    except NotFound:
        return None


def _store_name(name: str) -> str:
    """`Owner/Name` as a name that BentoML's store takes: `owner--name`."""
    plain = re.sub(r"[^a-z0-9._-]", "-", name.lower().replace("/", "--"))
    return plain[:_MAX_NAME_CHARS].strip("-._") or "checkpoint"


def _digest(checkpoint: Checkpoint) -> str:
    """A hash of the revision and of the files' names and bytes: 16 hex digits."""
    digest = hashlib.sha256(f"{checkpoint.revision}\n".encode())
    for file in checkpoint.files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()[:16]
