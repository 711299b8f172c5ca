"""Repositories of every kind on a hub on 127.0.0.1: the default and its copy, folders, bases, adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_machines import FILES, NAME, SMALL, Machine, serve
from hub_server import HubServer, Repository

from florence.checkpoint.hub import resolve_adapter

pytestmark = pytest.mark.slow

DEFAULT, COPY = "microsoft/Florence-2-large-ft", "mrhendrey/Florence-2-large-ft-safetensors"
PICKLED = {**SMALL, "pytorch_model.bin": b"pickle"}


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_microsofts_own_safetensors_come_first(tmp_path: Path, has_safetensors: bool) -> None:
    """The default is Microsoft's repository if it has safetensors, else the copy; no pickle is downloaded."""
    own = Repository({"main": FILES if has_safetensors else PICKLED})
    with HubServer({DEFAULT: own, COPY: Repository({"main": FILES})}) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve(DEFAULT)
        assert found.label.startswith(f"{DEFAULT if has_safetensors else COPY}@")
        assert hub.downloads().count("model.safetensors") == 1
        assert "pytorch_model.bin" not in hub.downloads()


def test_a_machine_that_has_the_copy_goes_on_with_it(tmp_path: Path) -> None:
    """A machine with the cached copy uses it without the hub, also at a revision that only the copy has."""
    copy = Repository({"main": FILES, "v1": FILES})
    with HubServer({DEFAULT: Repository({"main": PICKLED}), COPY: copy}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        first = machine.resolve(DEFAULT, revision="v1")
        assert not first.error
        assert machine.resolve(DEFAULT).directory == first.directory
    assert machine.resolve(DEFAULT, HF_HUB_OFFLINE="1").directory == first.directory


def test_without_either_the_error_is_about_the_name_that_was_asked(tmp_path: Path) -> None:
    """Without safetensors and without a copy, the error names the repository that was asked for."""
    with HubServer({DEFAULT: Repository({"main": PICKLED})}) as hub:
        assert (
            f"{DEFAULT} has its weights as pickle" in Machine(tmp_path, hub.endpoint).resolve(DEFAULT).error
        )


IN_FOLDER = {f"icon_caption/{name}": data for name, data in FILES.items()} | {
    "icon_detect/model.safetensors": b"another model",
    "config.json": b'{"model_type": "another"}',
}


@pytest.mark.parametrize("offline", [False, True])
def test_a_folder_of_a_repository_is_a_checkpoint(tmp_path: Path, offline: bool) -> None:
    """A folder of a repository is a checkpoint: nothing else is downloaded, and its label names folder and
    commit."""
    with serve(IN_FOLDER) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        found = machine.resolve(f"{NAME}:icon_caption", HF_HUB_OFFLINE="0")
        assert not found.error
        again = machine.resolve(f"{NAME}:icon_caption", HF_HUB_OFFLINE=str(int(offline)))
        assert found.directory == again.directory
        assert found.directory.name == "icon_caption"
        assert found.label == f"{NAME}:icon_caption@{found.revision[:12]}"
        assert "icon_detect" not in str(hub.log)
        asked = {path for _, path, _ in hub.log if "/resolve/" in path}
        assert all("/icon_caption/" in path for path in asked)


def test_a_revision_may_stand_in_the_name(tmp_path: Path) -> None:
    """A name may contain a revision; another revision beside it is refused."""
    repository = Repository({"main": FILES, "refs/pr/6": IN_FOLDER})
    with HubServer({NAME: repository}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        found = machine.resolve(f"{NAME}@{repository.commit(IN_FOLDER)}:icon_caption")
        assert found.revision == repository.commit(IN_FOLDER)
        assert "give one of them" in machine.resolve(f"{NAME}@v1", revision="v2").error


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing folder is named in the error."""
    with serve(IN_FOLDER) as hub:
        error = Machine(tmp_path, hub.endpoint).resolve(f"{NAME}:no_such").error
    assert f"{NAME}:no_such is not a whole Florence-2 checkpoint: it lacks config.json" in error


def test_a_base_of_the_hub_gives_its_small_files_only(tmp_path: Path) -> None:
    """A base gives the tokenizer and preprocessor that a repository lacks; the base's weights are not
    downloaded."""
    bare = {name: FILES[name] for name in ("config.json", "model.safetensors")}
    with serve(bare, **{"someone/base": Repository({"main": FILES})}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        assert "FLORENCE_BASE may name the checkpoint" in machine.resolve().error
        assert not hub.ranges("model.safetensors")
        found = machine.resolve(base="someone/base")
        assert found.files == [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
        ]
        assert len(hub.ranges("model.safetensors")) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": b'{"base_model_name_or_path": "a/b"}'}, "is a LoRA adapter for a/b"),
        ({**SMALL, "onnx/model.onnx": b""}, "is an export to ONNX"),
        ({"florence-2.gguf": b""}, "is a GGUF file"),
    ],
)
def test_a_repository_of_another_kind_is_refused_by_what_it_is(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """An adapter, an ONNX export and a GGUF file are refused by name."""
    with serve(files) as hub:
        assert message in Machine(tmp_path, hub.endpoint).resolve().error


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "model.safetensors"])
def test_an_adapter_comes_from_the_hub(tmp_path: Path, weights: str) -> None:
    """An adapter is downloaded under either of its file names; a whole model beside it is not."""
    files = {"adapter_config.json": b"{}", weights: b"adapter", "README.md": b"not asked for"}
    if weights != "model.safetensors":
        files["model.safetensors"] = b"a whole model"
    with serve(files) as hub, Machine(tmp_path, hub.endpoint).library():
        found = resolve_adapter(NAME)
        assert (found.directory / weights).read_bytes() == b"adapter"
        assert set(hub.downloads()) == {"adapter_config.json", weights}
        assert found.label == f"{NAME}@{found.revision[:12]}"
