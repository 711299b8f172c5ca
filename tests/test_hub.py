"""Checkpoints by name: the packaged one, directories, and repositories of a hub on 127.0.0.1.

Each look-up runs in a process of its own, since `huggingface_hub` reads HF_ENDPOINT and HF_HOME when it is
imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import Cut, HubServer, Repository

from florence.checkpoint.hub import resolve_checkpoint
from florence.errors import CheckpointError

NAME = "someone/small-florence"
MEGABYTE = 2**20
# huggingface_hub writes in steps of 10 MiB: a file that is cut has to be larger to leave anything behind.
WEIGHTS = bytes(range(256)) * (24 * MEGABYTE // 256)
SMALL = {
    "config.json": b'{"model_type": "florence2"}',
    "preprocessor_config.json": b'{"size": 768}',
    "tokenizer.json": b"{}",
    "README.md": b"not asked for",
    "modeling_florence2.py": b"raise SystemExit('code from a hub was run')",
    "onnx/config.json": b"{}",
}
FILES = {**SMALL, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"never asked for"}
SHARDED = {
    **SMALL,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "consolidated.safetensors": b"another copy",
}

_PROGRAM = """
import json, sys
from florence.errors import CheckpointError
from florence.checkpoint.hub import resolve_checkpoint
try:
    found = resolve_checkpoint(sys.argv[1], sys.argv[2] or None, sys.argv[3] or None)
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({
        "directory": str(found.directory), "revision": found.revision, "label": found.label,
        "files": [file.name for file in found.files],
    }))
"""


@dataclass
class Found:
    directory: Path
    revision: str
    label: str
    error: str
    progress: str
    files: list[str]


@dataclass
class Machine:
    """A machine whose hub is `endpoint` and whose cache is `home`."""

    home: Path
    endpoint: str

    def resolve(self, name: str = NAME, revision: str = "", base: str = "", **variables: str) -> Found:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        clean |= {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "127.0.0.1",
            **variables,
        }
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM, name, revision, base],
            env=clean,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        answer = json.loads(run.stdout.splitlines()[-1])
        return Found(
            directory=Path(answer.get("directory", "")),
            revision=answer.get("revision", ""),
            label=answer.get("label", ""),
            error=answer.get("error", ""),
            progress=run.stderr,
            files=answer.get("files", []),
        )


def serve(files: dict[str, bytes], **more: Repository) -> HubServer:
    return HubServer({NAME: Repository({"main": files}), **more})


def test_first_download_brings_only_what_is_read(tmp_path: Path) -> None:
    """A repository comes whole but for code, pickle, subfolders and texts; progress is shown."""
    with serve(FILES) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        names = {
            str(file.relative_to(found.directory)) for file in found.directory.rglob("*") if file.is_file()
        }
        assert names == {"config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"}
        assert set(hub.downloads()) == names
        assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
        assert found.label == f"{NAME}@{found.revision[:12]}"
        assert tmp_path in found.directory.parents
        assert "100%" in found.progress


def test_a_tokenizer_in_two_files_comes_whole(tmp_path: Path) -> None:
    """vocab.json with merges.txt in tokenizer.json's place: the only text file that is downloaded."""
    files = {name: data for name, data in FILES.items() if name != "tokenizer.json"}
    files |= {"vocab.json": b"{}", "merges.txt": b"#version: 0.2", "LICENSE.txt": b"not asked for"}
    with serve(files) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        assert (found.directory / "merges.txt").read_bytes() == b"#version: 0.2"
        assert "LICENSE.txt" not in hub.downloads()


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_cached_checkpoint_starts_without_the_hub(tmp_path: Path, offline: str) -> None:
    """After one download neither a dead hub nor HF_HUB_OFFLINE stops a start, and no byte is fetched
    again."""
    with serve(FILES) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        first = machine.resolve()
        before = len(hub.downloads())
        again = machine.resolve()
        assert (again.directory, len(hub.downloads())) == (first.directory, before)
    assert machine.resolve(HF_HUB_OFFLINE=offline).directory == first.directory


def test_offline_mode_sends_nothing(tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE set no call is made, and the error says so."""
    with serve(FILES) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve(HF_HUB_OFFLINE="1")
        assert not hub.log
    assert "HF_HUB_OFFLINE is set" in found.error


def test_no_network_and_no_cache_names_the_ways_out(tmp_path: Path) -> None:
    """The error names the repository, the endpoint, a local directory and FLORENCE_MODEL=demo."""
    with serve({}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
    found = machine.resolve()
    for part in (NAME, machine.endpoint, "local directory", "FLORENCE_MODEL=demo"):
        assert part in found.error


def test_a_cut_connection_is_resumed_in_the_same_run(tmp_path: Path) -> None:
    """A file that stops in the middle is asked for again from where it stopped, and comes out whole."""
    with serve(FILES) as hub:
        hub.cuts["model.safetensors"] = Cut(after=15 * MEGABYTE)
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS
        first, second = hub.ranges("model.safetensors")
        assert (first, second) == (None, f"bytes={10 * MEGABYTE}-")


def test_a_download_that_was_cut_goes_on_at_the_next_start(tmp_path: Path) -> None:
    """When the hub goes away in the middle the error says so; the next start fetches the rest."""
    with serve(FILES) as hub:
        hub.cuts["model.safetensors"] = Cut(after=15 * MEGABYTE, then_down=True)
        machine = Machine(tmp_path, hub.endpoint)
        cut = machine.resolve()
        assert "did not finish" in cut.error
        assert "fetch the rest" in cut.error
        assert "no complete copy" in machine.resolve(HF_HUB_OFFLINE="1").error
        hub.down = False
        hub.log.clear()
        found = machine.resolve()
        assert not found.error
        assert hub.downloads() == ["model.safetensors"]
        assert (found.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_shards_are_fetched_by_the_index(tmp_path: Path) -> None:
    """Of a sharded repository the index's files come, and no other copy of the weights."""
    with serve(SHARDED) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        assert {name for name in hub.downloads() if name.endswith(".safetensors")} == {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        }


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """A shard that the index names and the repository lacks is an error with its name."""
    with serve(
        {name: data for name, data in SHARDED.items() if name != "model-00002-of-00002.safetensors"}
    ) as hub:
        assert "lacks model-00002-of-00002.safetensors" in Machine(tmp_path, hub.endpoint).resolve().error


@pytest.mark.parametrize(
    "missing", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"]
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    """A repository without one of the needed files is refused by that file's name."""
    files = {name: data for name, data in FILES.items() if name not in (missing, "pytorch_model.bin")}
    with serve(files) as hub:
        error = Machine(tmp_path, hub.endpoint).resolve().error
        assert f"lacks {missing}" in error
        assert missing == "model.safetensors" or "model.safetensors" not in hub.downloads()


def test_a_repository_with_pickle_only_is_refused(tmp_path: Path) -> None:
    """Weights as pickle are not downloaded; the error names the mirrors that have safetensors."""
    with serve({**SMALL, "pytorch_model.bin": b"pickle"}) as hub:
        error = Machine(tmp_path, hub.endpoint).resolve().error
        assert "pytorch_model.bin" not in hub.downloads()
    assert "pickle" in error
    assert "mrhendrey/Florence-2-large-ft-safetensors" in error
    assert "florence-community/Florence-2-large-ft" in error


def test_unknown_and_gated_repositories_have_their_own_errors(tmp_path: Path) -> None:
    """Not found, gated and a wrong revision are told apart."""
    gated = Repository({"main": FILES}, gated=True)
    with serve(FILES, **{"someone/gated": gated}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        assert "has no repository someone/else" in machine.resolve("someone/else").error
        assert "is gated" in machine.resolve("someone/gated").error
        assert f"{NAME} has no revision 'v9'" in machine.resolve(revision="v9").error


def test_a_revision_is_taken(tmp_path: Path) -> None:
    """A tag and a commit of it give that revision's files, not the default branch's."""
    tagged = {
        **FILES,
        "config.json": b'{"model_type": "florence2", "tag": 1}',
        "model.safetensors": b"tagged",
    }
    repository = Repository({"main": FILES, "v1": tagged})
    with HubServer({NAME: repository}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        for revision in ("v1", repository.commit(tagged)):
            found = machine.resolve(revision=revision)
            assert found.revision == repository.commit(tagged)
            assert (found.directory / "model.safetensors").read_bytes() == b"tagged"


def lay(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """A directory with all files is its own checkpoint, single or sharded, and has no revision."""
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
    """What a directory lacks, or holds in the wrong form, is named."""
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(str(lay(tmp_path, files)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "no-such-name", "./no/such/place", "a/b/c", "https://host/owner/name", "../x/y"]
)
def test_a_name_that_is_neither_directory_nor_repository_is_refused(name: str) -> None:
    """Such a name is refused without a call to any hub, with the three kinds of names there are."""
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(name)
    assert "a directory, a repository of the hub" in str(caught.value)


def test_only_repositories_have_revisions(tmp_path: Path) -> None:
    """A revision for a directory or the packaged checkpoint is refused."""
    for name in (str(lay(tmp_path, FILES)), "demo"):
        with pytest.raises(CheckpointError, match="no revisions"):
            resolve_checkpoint(name, "main")


DEFAULT, COPY = "microsoft/Florence-2-large-ft", "mrhendrey/Florence-2-large-ft-safetensors"
PICKLED = {**SMALL, "pytorch_model.bin": b"pickle"}


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_microsofts_own_safetensors_come_first(tmp_path: Path, has_safetensors: bool) -> None:
    """The default is Microsoft's repository where that has safetensors, else the copy; no pickle comes."""
    own = Repository({"main": FILES if has_safetensors else PICKLED})
    with HubServer({DEFAULT: own, COPY: Repository({"main": FILES})}) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve(DEFAULT)
        assert found.label.startswith(f"{DEFAULT if has_safetensors else COPY}@")
        assert hub.downloads().count("model.safetensors") == 1
        assert "pytorch_model.bin" not in hub.downloads()


def test_a_machine_that_has_the_copy_goes_on_with_it(tmp_path: Path) -> None:
    """Without the hub, and with a revision that only the copy has."""
    copy = Repository({"main": FILES, "v1": FILES})
    with HubServer({DEFAULT: Repository({"main": PICKLED}), COPY: copy}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        first = machine.resolve(DEFAULT, revision="v1")
        assert not first.error
        assert machine.resolve(DEFAULT).directory == first.directory
    assert machine.resolve(DEFAULT, HF_HUB_OFFLINE="1").directory == first.directory


def test_without_either_the_error_is_about_the_name_that_was_asked(tmp_path: Path) -> None:
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
    """Of the others nothing is downloaded; the label says folder and commit."""
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
    repository = Repository({"main": FILES, "refs/pr/6": IN_FOLDER})
    with HubServer({NAME: repository}) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        found = machine.resolve(f"{NAME}@{repository.commit(IN_FOLDER)}:icon_caption")
        assert found.revision == repository.commit(IN_FOLDER)
        assert "give one of them" in machine.resolve(f"{NAME}@v1", revision="v2").error


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serve(IN_FOLDER) as hub:
        error = Machine(tmp_path, hub.endpoint).resolve(f"{NAME}:no_such").error
    assert f"{NAME}:no_such is not a whole Florence-2 checkpoint: it lacks config.json" in error


def test_a_base_of_the_hub_gives_its_small_files_only(tmp_path: Path) -> None:
    """The tokenizer and the preprocessor that a repository lacks; the base's weights are not downloaded."""
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
    with serve(files) as hub:
        assert message in Machine(tmp_path, hub.endpoint).resolve().error


_ADAPTER_PROGRAM = """
import json, sys
from florence.checkpoint.hub import resolve_adapter
found = resolve_adapter(sys.argv[1])
print(json.dumps({"directory": str(found.directory), "revision": found.revision, "label": found.label}))
"""


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "model.safetensors"])
def test_an_adapter_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    """Under either name of its file, and of a repository with a whole model only the adapter."""
    files = {"adapter_config.json": b"{}", weights: b"adapter", "README.md": b"not asked for"}
    if weights != "model.safetensors":
        files["model.safetensors"] = b"a whole model"
    monkeypatch.setitem(globals(), "_PROGRAM", _ADAPTER_PROGRAM)
    with serve(files) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert (found.directory / weights).read_bytes() == b"adapter"
        assert set(hub.downloads()) == {"adapter_config.json", weights}
        assert found.label == f"{NAME}@{found.revision[:12]}"
