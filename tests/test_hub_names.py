"""Checkpoint names that need no hub: directories, the packaged checkpoint, and invalid names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_machines import FILES, SHARDED, SMALL

from florence.checkpoint.hub import resolve_checkpoint
from florence.errors import CheckpointError


def lay(directory: Path, files: dict[str, bytes]) -> Path:
    """Write these files below the directory, which is returned."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """A directory with all files, single or sharded, is its own checkpoint and has no revision."""
    for number, files in enumerate((FILES, SHARDED)):
        found = resolve_checkpoint(str(lay(tmp_path / str(number), files)))
        assert (found.directory, found.revision) == (tmp_path / str(number), None)
        assert found.label == str(tmp_path / str(number))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "lacks config.json, tokenizer.json or vocab.json with merges.txt, preprocessor_config.json"),
        (SMALL, "lacks model.safetensors"),
        ({**SMALL, "pytorch_model.bin": b""}, "mrhendrey/Florence-2-large-ft-safetensors"),
        ({**SHARDED, "model.safetensors.index.json": b"{"}, "can't be read"),
        (
            {**SHARDED, "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            "beside it",
        ),
        ({**SHARDED, "model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}'}, "beside it"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """The error names what a directory lacks or holds in the wrong form."""
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(str(lay(tmp_path, files)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "no-such-name", "./no/such/place", "a/b/c", "https://host/owner/name", "../x/y"]
)
def test_a_name_that_is_neither_directory_nor_repository_is_refused(name: str) -> None:
    """Such a name is refused without a call to a hub; the error lists the three kinds of names."""
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(name)
    assert "a directory, a repository of the hub" in str(caught.value)


def test_only_repositories_have_revisions(tmp_path: Path) -> None:
    """A revision for a directory or the packaged checkpoint is refused."""
    for name in (str(lay(tmp_path, FILES)), "demo"):
        with pytest.raises(CheckpointError, match="no revisions"):
            resolve_checkpoint(name, "main")
