"""Copies of checkpoints that keep the name of their origin, and when a packed one is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models.model import ModelStore
from bentos import DEMO

from florence.bento.weights import ALIAS, packed_settings, store_checkpoint
from florence.checkpoint.files import ORIGIN, checkpoint_files
from florence.checkpoint.hub import Checkpoint, copy_checkpoint, resolve_checkpoint
from florence.errors import CheckpointError
from florence.settings import Settings

NAME, COMMIT = "Someone/Small-Florence", "0123456789abcdef0123456789abcdef01234567"
NEEDED = ("config.json", "preprocessor_config.json", "tokenizer.json")


def lay(directory: Path, *names: str) -> Path:
    """Make a directory with files of these names."""
    directory.mkdir()
    for name in names:
        (directory / name).write_text("{}" if name.endswith(".json") else name)
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """The folder of BentoML's model store; only BentoML's own container can replace the store."""
    folder = lay(tmp_path / "store")
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()


@pytest.fixture
def packed(store: Path) -> Path:
    """The packed checkpoint of a Bento that was built with the demo checkpoint's files under a hub id."""
    with bentoml.models.create(ALIAS) as model:
        copy_checkpoint(Checkpoint(NAME, COMMIT, DEMO), Path(model.path))
    return Path(bentoml.models.get(ALIAS).path)


def test_only_what_is_read_is_copied(tmp_path: Path) -> None:
    """A copy has the JSON files, the vocabulary's merges and the weights: no code, no pickle, no second copy
    of the weights."""
    kept = [*NEEDED, "merges.txt", "model.safetensors"]
    unread = ("modeling.py", "pytorch_model.bin", "other.safetensors", "README.md")
    source = lay(tmp_path / "source", *kept, *unread)
    assert [file.name for file in checkpoint_files(source)] == sorted(kept)
    target = lay(tmp_path / "target")
    copy_checkpoint(Checkpoint(str(source), None, source), target)
    assert {file.name for file in target.iterdir()} == {*kept, ORIGIN}
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in kept)


def test_shards_are_copied_by_the_index(tmp_path: Path) -> None:
    """All shards that the index names are copied, and no others."""
    source = lay(tmp_path / "source", *NEEDED, "a.safetensors", "b.safetensors", "c.safetensors")
    (source / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    found = {file.name for file in checkpoint_files(source)}
    assert found == {*NEEDED, "model.safetensors.index.json", "a.safetensors", "b.safetensors"}


def test_builds_of_the_same_checkpoint_share_one_copy(tmp_path: Path, store: Path) -> None:
    """Builds of the same checkpoint share one copy; a checkpoint with other files gets its own."""
    source = lay(tmp_path / "my-finetune", *NEEDED, "model.safetensors")
    tags = [store_checkpoint(Checkpoint(str(source), None, source)).tag for _ in range(2)]
    assert tags[0] == tags[1]
    (source / "model.safetensors").write_text("others")
    other = store_checkpoint(Checkpoint(str(source), None, source)).tag
    assert (other.name, other == tags[0]) == (tags[0].name, False)
    assert len(list(store.glob("*/*/model.safetensors"))) == 2


def test_a_copy_goes_by_name_and_commit_of_its_origin(packed: Path) -> None:
    """A copy, and a copy of a copy, has the name and commit of its origin."""
    found = resolve_checkpoint(str(packed))
    assert (found.label, found.directory) == (f"{NAME}@{COMMIT[:12]}", packed)
    again = lay(packed.parent / "again")
    copy_checkpoint(found, again)
    assert resolve_checkpoint(str(again)).label == found.label


def test_a_copy_of_a_directory_goes_by_its_last_name(tmp_path: Path) -> None:
    """A copy's label does not show its path on the machine that built the Bento."""
    target = lay(tmp_path / "target")
    copy_checkpoint(Checkpoint(str(tmp_path / "my-finetune"), None, DEMO), target)
    assert resolve_checkpoint(str(target)).label == "my-finetune"


@pytest.mark.parametrize("origin", ["", "[]", '{"name": "x"}', "null"])
def test_an_origin_that_says_nothing_is_refused(packed: Path, origin: str) -> None:
    """An unusable origin file is an error that names the file."""
    (packed / ORIGIN).write_text(origin)
    with pytest.raises(CheckpointError, match=ORIGIN):
        resolve_checkpoint(str(packed))


@pytest.mark.parametrize(
    "asked", [{}, {"model": NAME}, {"revision": COMMIT}, {"model": NAME, "revision": COMMIT}]
)
def test_the_packed_checkpoint_is_served_when_nothing_else_is_asked(
    packed: Path, asked: dict[str, str]
) -> None:
    """The packed checkpoint is served without a name, or by its own name and commit."""
    settings = packed_settings(Settings(timeout_s=7, **asked))
    assert (settings.model, settings.revision, settings.timeout_s) == (str(packed), None, 7)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"model": "demo"}, "demo"),
        ({"model": "Other/Florence"}, "Other/Florence"),
        ({"model": NAME, "revision": "main"}, NAME),
        ({"revision": "main"}, NAME),
    ],
)
def test_another_checkpoint_or_revision_is_resolved_by_the_hub(
    packed: Path, asked: dict[str, str], name: str
) -> None:
    """Another name or revision is resolved by the hub, since a branch may have moved since the build."""
    settings = packed_settings(Settings(**asked))
    assert (settings.model, settings.revision) == (name, asked.get("revision"))


def test_without_a_packed_checkpoint_settings_stay(store: Path) -> None:
    """Without a packed checkpoint the settings stay unchanged."""
    settings = Settings()
    assert packed_settings(settings) is settings
