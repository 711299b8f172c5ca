"""The bundled checkpoint: its files, and its figures on held-out scenes, which its README states."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from safetensors import safe_open

from florence import Florence2
from florence.demo.evaluate import main, table
from florence.demo.evaluation.exam import Exam, ask_model
from florence.demo.world.drawing import held_out
from florence.demo.world.scenes import Limits

CHECKPOINT = Path(str(resources.files("florence.demo"))) / "checkpoint"
SEED, SCENES = 41, 40
# The figures that the checkpoint must reach on unseen scenes.
LEAST = {
    "<CAPTION>": {"exact": 0.9},
    "<CAPTION_TO_PHRASE_GROUNDING>": {"right@50": 0.8},
    "<OD>": {"mAP@50": 0.85},
    "<DENSE_REGION_CAPTION>": {"mAP@50": 0.75},
    "<REGION_PROPOSAL>": {"recall@50": 0.9},
    "<OCR>": {"words": 0.9},
    "<OCR_WITH_REGION>": {"words@50": 0.8},
    "<REFERRING_EXPRESSION_SEGMENTATION>": {"mIoU": 0.75, "right@50": 0.8},
    "<REGION_TO_SEGMENTATION>": {"mIoU": 0.75, "right@50": 0.8},
    "<OPEN_VOCABULARY_DETECTION>": {"mAP@50": 0.8},
    "<REGION_TO_CATEGORY>": {"exact": 0.85},
    "<REGION_TO_DESCRIPTION>": {"exact": 0.85},
    "<REGION_TO_OCR>": {"exact": 0.85},
}
MOST_INVENTED = 0.05


@pytest.fixture(scope="module")
def demo() -> Iterator[Florence2]:
    """The demo checkpoint."""
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        yield model


def test_the_bundle_is_small_and_whole() -> None:
    """The bundle has six files and a README, float16 weights of at most 12 MB, and Florence-2's generation
    settings."""
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


@pytest.mark.slow
@pytest.mark.usefixtures("evaluators")
def test_held_out_scenes_are_answered_well(demo: Florence2) -> None:
    """The answers about unseen scenes reach the required figure for each task."""
    exam = Exam.draw(SEED, SCENES, tuple(LEAST), Limits())
    grades = exam.grade([answer.result for answer in ask_model(demo, exam.items)])
    figures = {task: one.figures for task, one in grades.items()}
    for task, floors in LEAST.items():
        assert all(figures[task][name] >= least for name, least in floors.items()), table(figures)
    assert figures["<OPEN_VOCABULARY_DETECTION>"]["invented"] < MOST_INVENTED, table(figures)


@pytest.mark.usefixtures("evaluators")
def test_the_evaluation_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON has the printed figures of the requested tasks, named by token or by name, and the captions'
    tokenizer."""
    path = tmp_path / "figures.json"
    options = ["--count", "2", "--tasks", "caption", "<OD>", "--dtype", "float32", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["evaluate", *options])
    main()
    report = json.loads(path.read_text())
    assert set(report["tasks"]) == set(report["reliability"]) == {"<CAPTION>", "<OD>"}
    printed = capsys.readouterr().out
    for task in report["tasks"].values():
        assert all(f"{name} {value:.3f}" in printed for name, value in task.items() if name != "questions")
    assert report["caption_tokenizer"] in printed
    assert sum(row["count"] for row in report["reliability"]["<CAPTION>"]) == 2


@pytest.mark.parametrize("library", ["pycocotools.cocoeval", "pycocoevalcap.cider.cider"])
def test_without_its_packages_the_evaluation_names_them(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its packages the evaluation names the extra before any request."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("sys.argv", ["evaluate"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert 'pip install ".[evaluate]"' in capsys.readouterr().err


@pytest.mark.usefixtures("evaluators")
@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        (["--things", "4", "1"], 2, "--things must lie between 1 and 6"),
        (["--count", "0"], 2, "--count must be 1 or more"),
        (["--tasks", "sing"], 1, "sing"),
        (["--count", "1", "--url", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9/caption can't be reached"),
    ],
)
def test_mistakes_end_the_evaluation_in_a_line(
    wrong: list[str],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake ends the evaluation with one line."""
    monkeypatch.setattr("sys.argv", ["evaluate", *wrong])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_answers_come_from_the_picture(demo: Florence2) -> None:
    """Different scenes get different captions."""
    pictures = [image for _, image, _ in held_out(SEED + 1, 8, Limits(things=(2, 2)))]
    answers = [demo.run(image, "<CAPTION>").raw_text for image in pictures]
    assert len(set(answers)) >= 7
