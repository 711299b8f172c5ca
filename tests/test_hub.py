"""Downloads from a hub on 127.0.0.1: what is fetched, how often, and what happens without a hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_machines import FILES, LARGE, MEGABYTE, NAME, SHARDED, SMALL, WEIGHTS, Machine, serve
from hub_server import Cut, HubServer, Repository

pytestmark = pytest.mark.slow


def test_first_download_brings_only_what_is_read(tmp_path: Path) -> None:
    """A download brings all files except code, pickle, subfolders and texts, and shows progress."""
    with serve(FILES) as hub:
        found = Machine(tmp_path, hub.endpoint).start()
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
    """Without tokenizer.json, vocab.json and merges.txt are downloaded; merges.txt is the only text file."""
    files = {name: data for name, data in FILES.items() if name != "tokenizer.json"}
    files |= {"vocab.json": b"{}", "merges.txt": b"#version: 0.2", "LICENSE.txt": b"not asked for"}
    with serve(files) as hub:
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        assert (found.directory / "merges.txt").read_bytes() == b"#version: 0.2"
        assert "LICENSE.txt" not in hub.downloads()


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_cached_checkpoint_starts_without_the_hub(tmp_path: Path, offline: str) -> None:
    """After one download a start needs no hub, works with HF_HUB_OFFLINE, and fetches no byte again."""
    with serve(FILES) as hub:
        machine = Machine(tmp_path, hub.endpoint)
        first = machine.resolve()
        before = len(hub.downloads())
        again = machine.resolve()
        assert (again.directory, len(hub.downloads())) == (first.directory, before)
    assert machine.start(HF_HUB_OFFLINE=offline).directory == first.directory


def test_offline_mode_sends_nothing(tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE set no call is made, and the error names the variable."""
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
    """A download that breaks off is resumed where it stopped, and the file is complete."""
    with serve({**FILES, "model.safetensors": LARGE}) as hub:
        hub.cuts["model.safetensors"] = Cut(after=15 * MEGABYTE)
        found = Machine(tmp_path, hub.endpoint).resolve()
        assert not found.error
        assert (found.directory / "model.safetensors").read_bytes() == LARGE
        first, second = hub.ranges("model.safetensors")
        assert (first, second) == (None, f"bytes={10 * MEGABYTE}-")


def test_a_download_that_was_cut_goes_on_at_the_next_start(tmp_path: Path) -> None:
    """If the hub goes away during a download, the error states it, and the next start fetches the rest."""
    with serve({**FILES, "model.safetensors": LARGE}) as hub:
        hub.cuts["model.safetensors"] = Cut(after=15 * MEGABYTE, then_down=True)
        machine = Machine(tmp_path, hub.endpoint)
        cut = machine.resolve()
        assert "did not finish" in cut.error
        assert "fetch the rest" in cut.error
        assert "no complete copy" in machine.resolve(HF_HUB_OFFLINE="1").error
        hub.down = False
        hub.log.clear()
        found = machine.start()
        assert not found.error
        assert hub.downloads() == ["model.safetensors"]
        assert (found.directory / "model.safetensors").read_bytes() == LARGE


def test_shards_are_fetched_by_the_index(tmp_path: Path) -> None:
    """A sharded repository gives the files that its index names, and no other copy of the weights."""
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
    """A missing repository, a gated one and a wrong revision have different errors."""
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
