"""Changes of the demo checkpoint's answers by bfloat16, fp8 and int8, and how they are measured."""

from __future__ import annotations

import json
import math
import runpy
from collections import Counter
from pathlib import Path

import pytest
from serving import ROOT

from florence import Florence2
from florence.answers.answer import Answer
from florence.demo.evaluation.exam import Exam, ask_model
from florence.demo.evaluation.grading import Grade
from florence.demo.world.ground_truth import full
from florence.demo.world.scenes import Limits
from florence.model.devices import has_vnni
from florence.model.kernels.int8 import can_quantize
from florence.types.tasks import TASKS, Kind

_SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "drift.py"))
compare, compare_tasks, changes = (_SCRIPT[name] for name in ("compare", "compare_tasks", "changes"))
ALL: str = _SCRIPT["ALL"]

pytestmark = pytest.mark.usefixtures("evaluators")

SEED, SCENES = 43, 16
TEXT_TASKS = [token for token, task in TASKS.items() if task.kind is Kind.TEXT]
LABELS = {"<OD>": lambda thing: thing.shape, "<DENSE_REGION_CAPTION>": full}
HAS_INT8 = has_vnni() and can_quantize()


@pytest.fixture(scope="module")
def exam() -> Exam:
    """Questions of all tasks about held-out scenes."""
    return Exam.draw(SEED, SCENES, tuple(TASKS), Limits())


@pytest.fixture(scope="module")
def exact(exam: Exam) -> list[Answer]:
    """The answers in float32."""
    return _answers(exam, "float32")


def _answers(exam: Exam, dtype: str) -> list[Answer]:
    """The demo's answers in this dtype."""
    with Florence2.load("demo", device="cpu", dtype=dtype) as model:
        return ask_model(model, exam.items)


def _boxes(exam: Exam, answers: list[Answer]) -> dict[str, Grade]:
    """Grades of the tasks in `LABELS`."""
    asked = [row for row in zip(exam.asked, answers, strict=True) if row[0][2].task in LABELS]
    part = Exam(tuple(LABELS), [question for question, _ in asked])
    return part.grade([answer.result for _, answer in asked])


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "fp8",
        pytest.param("int8", marks=pytest.mark.skipif(not HAS_INT8, reason="no int8 here")),
    ],
)
def test_a_lesser_precision_says_the_same(exam: Exam, exact: list[Answer], dtype: str) -> None:
    """Against float32, 98% of the answers have the same words and 98% of the texts are equal.

    mAP@50 differs by at most half a point and the single thing that counts most, and locations differ by a
    few bins.
    """
    answers = _answers(exam, dtype)
    compared = compare_tasks(exam, exact, answers)
    changed = changes(*(_boxes(exam, row) for row in (exact, answers)))
    assert compared[ALL]["answers"] == len(exam.items)
    assert compared[ALL]["same_words"] >= 0.98, compared
    texts = [(compared[task]["answers"], compared[task]["same_text"]) for task in TEXT_TASKS]
    assert sum(count * share for count, share in texts) / sum(count for count, _ in texts) >= 0.98, compared
    for task, label in LABELS.items():
        labels = Counter(label(thing) for scene, _, question in exam.asked if question.task == task
                         for thing in scene.things)  # fmt: skip
        heaviest = 100 / len(labels) / min(labels.values())
        assert abs(changed[task]["mAP@50"]) <= 0.5 + heaviest, changed[task]
        assert compared[task]["bins_mean"] < 4, compared[task]


def test_known_texts_compare() -> None:
    """Whole texts, words and locations have separate shares; location differences count only answers with
    equally many locations."""
    first = ["<s>star<loc_1><loc_2></s>", "<s>ring<loc_5><loc_5></s>", "<s>moon<loc_7></s>", "<s>a cat</s>"]
    second = [
        "<s>star<loc_1><loc_6></s>",
        "<s>ring<loc_5><loc_5></s>",
        "<s>moon<loc_7><loc_8></s>",
        "<s>a</s>",
    ]
    found = compare(first, second)
    assert (found["answers"], found["same_text"], found["same_words"]) == (4, 0.25, 0.75)
    assert found["comparable"] == pytest.approx(2 / 3)
    assert (found["bins_same"], found["bins_mean"]) == (0.75, 1.0)
    assert 0 < found["bins_p95"] <= 4


def test_words_are_told_by_where_locations_part_them() -> None:
    """Words are compared between locations, so another order is a difference; answers without words are not
    counted."""
    assert compare(["star<loc_1>moon<loc_2>"], ["moon<loc_1>star<loc_2>"])["same_words"] == 0.0
    assert compare(["star<loc_1>moon<loc_2>"], ["starmoon<loc_2>"])["same_words"] == 0.0
    assert math.isnan(compare(["<s><loc_1></s>"], ["<s><loc_2></s>"])["same_words"])
    assert math.isnan(compare(["<s>a</s>"], ["<s>b</s>"])["bins_mean"])


@pytest.mark.slow
def test_the_same_answers_have_not_drifted(exam: Exam, exact: list[Answer]) -> None:
    """For equal answers every share is 1, and no location or figure differs."""
    compared = compare_tasks(exam, exact, exact)
    grades = exam.grade([answer.result for answer in exact])
    changed = changes(grades, grades)
    assert set(compared) == {*TASKS, ALL}
    unmoved = {"bins_mean": 0.0, "bins_p95": 0.0}
    for row in compared.values():
        assert all(
            value == unmoved.get(name, 1.0) or math.isnan(value)
            for name, value in row.items()
            if name != "answers"
        )
    assert all(value == 0.0 or math.isnan(value) for row in changed.values() for value in row.values())


@pytest.mark.slow
def test_the_drift_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON has the printed shares and changes of each precision except the first, and all figures."""
    path = tmp_path / "drift.json"
    options = ["--count", "2", "--tasks", "caption", "<OD>", "--dtypes", "float32", "bfloat16"]
    monkeypatch.setattr("sys.argv", ["drift", *options, "--json", str(path)])
    _SCRIPT["main"]()
    report = json.loads(path.read_text())
    assert report["reference"] == "float32"
    (drift,) = report["drift"].values()
    assert set(drift["answers"]) == {"<CAPTION>", "<OD>", ALL}
    assert drift["answers"][ALL]["answers"] == 4
    printed = capsys.readouterr().out
    before, after = (report["figures"][dtype]["<OD>"] for dtype in ("float32", "bfloat16"))
    for name, value in drift["changes"]["<OD>"].items():
        assert f"{name} {value:+.2f}" in printed
        assert value == pytest.approx(100 * (after[name] - before[name]))
