"""The bundled checkpoint: what it is, and that it answers held-out scenes as well as its README says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from safetensors import safe_open

from florence import Florence2
from florence.demo.asking import ask_model
from florence.demo.evaluate import evaluate, held_out, main, table
from florence.demo.scenes import Limits

CHECKPOINT = Path(str(resources.files("florence.demo"))) / "checkpoint"
SEED, SCENES = 41, 40
# Floors for this seed, comfortably under what was measured (see the checkpoint's README).
LEAST = {
    "<CAPTION>": ("exact", 0.85),
    "<OD>": ("mAP@50", 0.88),
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Florence2]:
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        yield model


def test_the_bundle_is_small_and_whole() -> None:
    """Six files and a README; float16 weights of at most 12 MB; the generation settings are Florence-2's."""
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 12_000_000
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    assert (text["num_beams"], text["early_stopping"], text["no_repeat_ngram_size"]) == (3, True, 3)
    starts_and_ends = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    assert [text[name] for name in starts_and_ends] == [2, 0, 2]


def test_held_out_scenes_are_answered_well(demo: Florence2) -> None:
    """Short captions and detections on unseen scenes of one to four things keep their floors."""
    figures = evaluate(ask_model(demo), SEED, SCENES, tuple(LEAST))
    for task, (name, least) in LEAST.items():
        assert figures[task][name] >= least, table(figures)


def test_the_evaluation_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON has the figures of the printed table, for the tasks asked for, named by token or by name."""
    path = tmp_path / "figures.json"
    options = ["--count", "2", "--tasks", "caption", "<OD>", "--dtype", "float32", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["evaluate", *options])
    main()
    report = json.loads(path.read_text())
    assert set(report["tasks"]) == {"<CAPTION>", "<OD>"}
    assert f"exact {report['tasks']['<CAPTION>']['exact']:.3f}" in capsys.readouterr().out


def test_answers_come_from_the_picture(demo: Florence2) -> None:
    """Different scenes get different captions: the model does not recite."""
    pictures = [image for _, image, _ in held_out(SEED + 1, 8, Limits(things=(2, 2)))]
    answers = [demo.run(image, "<CAPTION>").raw_text for image in pictures]
    assert len(set(answers)) >= 7
