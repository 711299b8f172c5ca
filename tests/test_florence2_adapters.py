"""Adapters named by requests: each answer equals that of the adapter alone, and the list may change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora import write_lora

from florence.checkpoint.adapter_list import adapters_of_settings, list_adapters
from florence.checkpoint.hub import resolve_checkpoint
from florence.errors import CheckpointError, FlorenceError, OptionError, SettingsError
from florence.runtime.adapters import Adapters
from florence.runtime.florence2 import Florence2
from florence.runtime.own_tasks import tasks_of_settings
from florence.settings import Settings
from florence.types.tasks import TASKS

DEMO = resolve_checkpoint("demo").directory
RECEIPT = {
    "token": "<RECEIPT>",
    "name": "receipt",
    "prompt": "What does the image describe?",
    "no_repeat_ngram_size": None,
}
"""A caption task with another name."""
PICTURES = sorted(Path(__file__).resolve().parents[1].joinpath("data").glob("*.jpg"))[:3]


def load(**options: Any) -> Florence2:
    """Load the demo checkpoint with these options."""
    return Florence2.load("demo", dtype="float32", threads=1, device="cpu", **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters: `receipts` changes the language model and declares a task, `plates` changes the tower."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "receipts": write_lora(DEMO, root / "receipts", size=0.1, seed=1, tasks=[RECEIPT]),
        "plates": write_lora(DEMO, root / "plates", "qkv", size=0.2, seed=2),
    }


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Iterator[Florence2]:
    """The demo checkpoint with both adapters."""
    with load(adapters={name: str(folder) for name, folder in folders.items()}) as loaded:
        yield loaded


def facts(answer: Any) -> tuple[str, tuple[float, ...]]:
    """The text and the rounded log-probabilities of an answer."""
    return answer.raw_text, tuple(round(value, 3) for value in answer.token_logprobs)


@pytest.mark.slow
def test_each_request_gets_what_its_adapter_alone_answers(model: Florence2, folders: dict[str, Path]) -> None:
    """Concurrent requests get the text of a model with their adapter merged, and its log-probabilities to
    1e-4.

    Without an adapter they get those of the base.
    """
    asks = [(picture, task) for picture in PICTURES for task in ("caption", "object_detection", "ocr")]
    futures = {
        name: [model.submit(picture, task, adapter=name) for picture, task in asks]
        for name in ("receipts", None, "plates")
    }
    texts = set()
    for name, started in futures.items():
        with load(adapter=None if name is None else str(folders[name])) as alone:
            for (picture, task), future in zip(asks, started, strict=True):
                found, wanted = future.result(), alone.run(picture, task)
                assert found.raw_text == wanted.raw_text
                assert found.token_logprobs == pytest.approx(wanted.token_logprobs, abs=1e-4)
                assert found.checkpoint == ("demo" if name is None else f"demo + {name}")
        texts.add(tuple(future.result().raw_text for future in started))
    assert len(texts) == 3


def test_an_unknown_adapter_is_refused_with_the_names_of_those_that_there_are(model: Florence2) -> None:
    """An unknown adapter is refused with the known names."""
    with pytest.raises(OptionError, match="unknown adapter 'nope'; the adapters are receipts, plates"):
        model.run(PICTURES[0], "caption", adapter="nope")
    with pytest.raises(OptionError, match="this service has none"):
        Adapters().find("nope", TASKS["<CAPTION>"])


def test_info_lists_them_and_their_tasks(model: Florence2, folders: dict[str, Path]) -> None:
    """`info` lists the adapters and their tasks."""
    found = model.info()
    assert found["adapters"] == [
        {"name": "receipts", "source": str(folders["receipts"]), "rank": 4, "tasks": ["<RECEIPT>"]},
        {"name": "plates", "source": str(folders["plates"]), "rank": 4, "tasks": []},
    ]
    assert [row["token"] for row in found["declared_tasks"]] == ["<RECEIPT>"]
    model.run(PICTURES[0], "caption", adapter="plates")
    assert model.memory()["adapters"] > 0


def test_a_task_that_an_adapter_declares_is_answered_by_it(model: Florence2) -> None:
    """A task that an adapter declares is answered by it, unless the request names another."""
    bound, named = model.run(PICTURES[0], "receipt"), model.run(PICTURES[0], "caption", adapter="receipts")
    assert (bound.checkpoint, bound.raw_text) == ("demo + receipts", named.raw_text)
    assert model.run(PICTURES[0], "receipt", adapter="plates").checkpoint == "demo + plates"


def test_a_merged_adapters_own_tasks_are_the_checkpoints(folders: dict[str, Path]) -> None:
    """A merged adapter's tasks belong to the checkpoint."""
    with load(adapter=str(folders["receipts"])) as merged:
        assert merged.run(PICTURES[0], "receipt").task == "<RECEIPT>"
    listed = f"a={folders['receipts']}"
    for settings in (Settings(adapter=str(folders["receipts"])), Settings(adapters=listed)):
        changed = settings.model_copy(update={"model": "demo"})
        assert [task.name for task in tasks_of_settings(changed)] == ["receipt"]


def test_the_list_is_read_again_and_a_request_keeps_the_adapter_that_it_was_given(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the list is read again, new adapters answer, removed ones are unknown, and running requests keep
    theirs.

    A bad entry leaves the list unchanged with a log line, and unchanged adapters are not loaded again.
    """
    file = tmp_path / "adapters.txt"
    file.write_text(f"# ours\nreceipts={folders['receipts']}\n")
    with load(adapters=file) as model:
        adapters = model.pipeline.adapters
        old = model.run(PICTURES[0], "caption", adapter="receipts")
        in_flight = [model.submit(picture, "caption", adapter="receipts") for picture in PICTURES]
        file.write_text(f"plates={folders['plates']}\nmore={folders['receipts']}\n")
        adapters.look()
        assert model.adapters == ["plates", "more"]
        assert in_flight[0].result().raw_text == old.raw_text
        assert model.run(PICTURES[0], "caption", adapter="more").raw_text == old.raw_text
        with pytest.raises(OptionError, match="the adapters are plates, more"):
            model.run(PICTURES[0], "caption", adapter="receipts")
        kept = adapters.engine_adapters
        for text in ("plates\n", f"plates={tmp_path / 'nowhere'}\n", "a=b\na=c\n"):
            caplog.clear()
            file.write_text(text)
            adapters.look()
            assert adapters.engine_adapters == kept
            assert "the adapters are unchanged" in caplog.text
        file.write_text(f"plates={folders['plates']}\n")
        adapters.look()
        assert adapters.engine_adapters == kept[:1]
        assert "receipt" not in {task.name for task in model.tasks.values()}


@pytest.mark.parametrize(
    ("layers", "settings", "message"),
    [
        ("q_proj", {"use_dora": True}, r"q_proj.weight: DoRA \(use_dora\)"),
        ("q_proj", {"r": 4, "rank": 4, "max_adapter_rank": 3}, "its rank is 4; at most 3 is allowed"),
        ("shared", {}, "shared.weight: not a linear layer"),
        ("embed_positions", {}, "embed_positions.weight: not a linear layer"),
    ],
)
def test_what_can_only_be_merged_is_refused_by_name(
    tmp_path: Path, layers: str, settings: dict[str, Any], message: str
) -> None:
    """An adapter that can only be merged is refused at the start with the setting that merges it."""
    most = settings.pop("max_adapter_rank", 64)
    folder = write_lora(DEMO, tmp_path / "adapter", layers, **settings)
    with pytest.raises(CheckpointError, match=message) as refused:
        load(adapters={"one": str(folder)}, max_adapter_rank=most)
    assert "FLORENCE_ADAPTER can merge it" in str(refused.value)


def test_clashing_tasks_are_one_error_and_equal_ones_need_a_name(tmp_path: Path) -> None:
    """Two adapters may declare the same task, and a request must name one of them; different tasks with one
    name are an error."""

    def sources(*tasks: dict[str, Any]) -> dict[str, str]:
        return {
            f"a{number}": str(write_lora(DEMO, tmp_path / f"a{number}", "fc2", seed=number, tasks=[task]))
            for number, task in enumerate(tasks)
        }

    with load(adapters=sources(RECEIPT, RECEIPT)) as model:
        with pytest.raises(
            OptionError, match="<RECEIPT> is a task of a0 and a1: name one of them as adapter"
        ):
            model.run(PICTURES[0], "receipt")
        assert model.run(PICTURES[0], "receipt", adapter="a1").checkpoint == "demo + a1"
    with pytest.raises(SettingsError, match="the tasks of the adapter a1: two tasks are called '<RECEIPT>'"):
        load(adapters=sources(RECEIPT, RECEIPT | {"kind": "json"}))


@pytest.mark.parametrize("options", [{"adapter": "somewhere"}, {"dtype": "int8"}])
def test_what_does_not_go_with_adapters_beside_is_said_at_once(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that exclude a list of adapters are refused at once."""
    monkeypatch.setattr("florence.model.devices.has_vnni", lambda: True)  # int8 is for such processors
    with pytest.raises(FlorenceError, match="unset FLORENCE_ADAPTER"):
        Florence2.load("demo", adapters={"a": "b"}, device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("receipts", "'receipts' must be name=source"),
        ("a b=c", "must be name=source"),
        ("a=b,a=c", "the adapter 'a' is listed twice"),
        ("a=b,b=c,c=d", "3 adapters are listed; at most 2 are allowed"),
    ],
)
def test_a_list_that_is_wrong_is_refused(text: str, message: str) -> None:
    """A wrong list of adapters is refused."""
    with pytest.raises(SettingsError, match=message):
        list_adapters(adapters_of_settings(text, None) or {}, 2)


def test_adapters_come_from_one_setting_only(tmp_path: Path) -> None:
    """Adapters come from one setting, and a missing file is an error."""
    with pytest.raises(SettingsError, match="not both"):
        adapters_of_settings("a=b", tmp_path)
    assert adapters_of_settings(None, None) is None
    with pytest.raises(SettingsError, match="can't be read"):
        list_adapters(tmp_path / "absent", 2)
