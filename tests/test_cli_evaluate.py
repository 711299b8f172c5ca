"""`florence evaluate` on drawn scenes: the demo's figures, continued runs, safe pages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from programs import program
from serving import Server

from florence import Florence2
from florence.cli import asking
from florence.cli.arguments import make_parser
from florence.cli.sides import read_sides
from florence.demo.draw import draw
from florence.demo.evaluation.exam import Exam, ask_model
from florence.demo.world.scenes import Limits
from florence.engine.config import EngineConfig
from florence.errors import SettingsError
from florence.evaluation.measures.captions import ALL_SCORES

pytestmark = pytest.mark.usefixtures("evaluators")

SEED, SCENES = 7, 8
Run = Callable[..., tuple[int, str, str]]

CASES = {
    "<CAPTION>": ("captions", "captions"),
    "<OD>": ("detection", "annotations"),
    "<DENSE_REGION_CAPTION>": ("dense-captions", "annotations"),
    "<REGION_PROPOSAL>": ("detection", "annotations"),
    "<CAPTION_TO_PHRASE_GROUNDING>": ("grounding", "grounding"),
    "<REFERRING_EXPRESSION_SEGMENTATION>": ("referring", "referring"),
    "<REGION_TO_SEGMENTATION>": ("segmentation", "segmentation"),
    "<OPEN_VOCABULARY_DETECTION>": ("open-vocabulary", "open_vocabulary"),
    "<OCR>": ("ocr", "annotations"),
    "<OCR_WITH_REGION>": ("ocr", "annotations"),
}
OWN = ("questions", "exact", "CIDEr_of_truth", "ECE")  # figures that only the demo's grades have


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes with COCO files."""
    folder = tmp_path_factory.mktemp("scenes")
    draw(folder, SEED, SCENES, Limits(), tasks=True)
    return folder


@pytest.fixture(scope="module")
def demo() -> Iterator[Florence2]:
    """The demo checkpoint."""
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        yield model


@pytest.fixture
def java() -> Path:
    """The path of Java."""
    return Path(program("java", "default-jre-headless", "JAVA_PROGRAM"))


@pytest.fixture
def loaded(demo: Florence2, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Give the command the loaded model and hide Java; return the arguments of each load."""
    asked: list[object] = []

    class Open:
        def __enter__(self) -> Florence2:
            return demo

        def __exit__(self, *error: object) -> None:
            pass

    def load(arguments: object) -> Open:
        asked.append(arguments)
        return Open()

    monkeypatch.setenv("FLORENCE_MODEL", "demo")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(asking, "load_model", load)
    return asked


@pytest.fixture(scope="module")
def grades(demo: Florence2) -> dict[str, dict[str, float]]:
    """The figures of `python -m florence.demo.evaluate`, by task."""
    exam = Exam.draw(SEED, SCENES, tuple(CASES), Limits())
    answers = ask_model(demo, exam.items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        graded = exam.grade([each.result for each in answers])
    return {task: one.figures for task, one in graded.items()}


def evaluated(florence: Run, out: Path, subject: str, *words: object) -> tuple[dict[str, Any], str]:
    """Run an evaluation; return its JSON and its output."""
    status, printed, said = florence("evaluate", subject, *words, "--out", out, "--no-progress")
    assert status == 0, said
    return json.loads((out / "figures.json").read_text()), printed


@pytest.mark.slow
@pytest.mark.parametrize("task", CASES)
def test_the_figures_are_the_demos(
    task: str,
    grades: dict[str, dict[str, float]],
    scenes: Path,
    loaded: list[object],
    florence: Run,
    tmp_path: Path,
) -> None:
    """On scenes exported as COCO the figures equal the demo's, and the printed table equals the JSON."""
    subject, file = CASES[task]
    words = ("--coco", scenes / f"scene_{file}.json", "--images", scenes, "--task", task)
    report, printed = evaluated(florence, tmp_path / "out", subject, *words)
    figures = report["figures"]
    assert report["questions"] == grades[task]["questions"]
    for name, value in grades[task].items():
        if name not in OWN:
            same = figures.get(f"pooled_{name}", figures.get(name))
            assert same == pytest.approx(value, abs=1e-9), name
    for name, value in figures.items():
        assert value is None or re.search(rf"^{re.escape(name)} +{value:.3f}$", printed, re.MULTILINE), name


@pytest.mark.slow
def test_tiles_wait_for_room_in_the_queue(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiled pictures need several slots of the queue each, but no question is refused."""
    small = EngineConfig.for_device("cpu", max_queue=4)
    model = Florence2.load("demo", device="cpu", dtype="float32", config=small)
    monkeypatch.setattr(asking, "load_model", lambda arguments: model)
    words = ("--coco", scenes / "scene_annotations.json", "--images", scenes, "--tiles", "2x2", "--limit", 3)
    report, _ = evaluated(florence, tmp_path / "out", "detection", *words, "--max-new-tokens", 4)
    assert (report["questions"], report["failed"]) == (3, 0)


@pytest.mark.system
def test_captions_have_all_of_cocos_figures(
    java: Path, scenes: Path, loaded: object, florence: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Java, captions get METEOR and the Penn Treebank tokenizer; the report names the tokenizer."""
    words = ("captions", "--coco", scenes / "scene_captions.json", "--images", scenes)
    plain, printed = evaluated(florence, tmp_path, *words)
    assert "METEOR" not in plain["figures"]
    assert "after a plain tokenizer (the Penn Treebank's needs Java); METEOR needs Java" in printed
    monkeypatch.setenv("PATH", str(java.parent))
    whole, printed = evaluated(florence, tmp_path, *words)
    assert list(whole["figures"]) == list(ALL_SCORES)
    assert 0.9 < whole["figures"].pop("METEOR") <= 1
    assert whole["figures"] == pytest.approx(plain["figures"])  # these words are split alike
    assert "after the Penn Treebank tokenizer" in printed


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path, demo: Florence2
) -> None:
    """A run killed in the middle of a line asks only for missing answers, a finished one loads no model, and
    a directory of another run, or a damaged one, is refused."""
    words = ("captions", "--coco", scenes / "scene_captions.json", "--images", scenes)
    report, printed = evaluated(florence, tmp_path, *words)
    kept = tmp_path / "answers.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert evaluated(florence, tmp_path, *words) == (report, printed)
    again = kept.read_bytes().splitlines(keepends=True)
    assert again[:5] == lines[:5]
    assert len(again) == len(lines) == SCENES
    loads = len(loaded)
    assert evaluated(florence, tmp_path, *words) == (report, printed)
    assert len(loaded) == loads
    status, _, said = florence("evaluate", *words, "--out", tmp_path, "--num-beams", 1)
    assert (status, "holds answers of another run (options was {}" in said) == (2, True)
    (tmp_path / "asked.json").write_text("{")
    status, _, said = florence("evaluate", *words, "--out", tmp_path)
    assert (status, "asked.json is damaged" in said) == (2, True)


@pytest.mark.slow
def test_the_same_words_about_a_picture_are_asked_once(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path
) -> None:
    """Two equal questions about a picture are asked once and both counted."""
    row = {"picture": "scene_00.png", "answer": "no"}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({**row, "text": word}) for word in "aab"))
    report, _ = evaluated(
        florence, tmp_path / "out", "prompts", "--rows", tmp_path / "rows.jsonl", "--images", scenes,
        "--prompt", "What does the image describe?{input}",
    )  # fmt: skip
    assert (report["questions"], report["pictures"], report["figures"]) == (3, 1, {"exact": 0.0})
    asked = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert sorted(row["task"][-2:] for row in asked) == ["?a", "?b"]


@pytest.mark.slow
def test_two_answerers_are_compared(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path, demo: Florence2
) -> None:
    """Table, JSON and page compare both sides, with intervals; equal sides do not differ."""
    words = ("--coco", scenes / "scene_annotations.json", "--images", scenes, "--resamples", 20)
    report, printed = evaluated(
        florence, tmp_path, "detection", *words, "--compare", "num_beams=1,max_new_tokens=8", "demo"
    )
    by_name = {row["figure"]: row for row in report["differences"]}
    short, full = by_name["recall@50"]["A"], by_name["recall@50"]["B"]
    low, high = by_name["recall@50"]["interval"]
    assert short < full == 1.0
    assert 0 < low <= full - short <= high
    assert re.search(rf"^recall@50 +{short:.3f} +{full:.3f} .*\*$", printed, re.MULTILINE)
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"answers-a.jsonl", "answers-b.jsonl"}
    page = (tmp_path / "worst.html").read_text()
    assert page.count("<img ") == 3 * SCENES
    equal, _ = evaluated(
        florence, tmp_path / "equal", "detection", *words, "--compare", "num_beams=3", "num_beams=3"
    )
    assert all(row["interval"] == [0, 0] for row in equal["differences"] if row["A"] is not None)


class Page(HTMLParser):
    """A parser that collects a page's tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.slow
def test_the_page_runs_nothing_and_asks_no_other_host(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path
) -> None:
    """The page runs no script and contacts no host, and shows the requested number of worst answers."""
    evil = '<script src="http://evil.example/x.js"></script>"\'><img src=x onerror=alert(1)>.png'
    name = evil.replace("/", "\u2044")  # a file name can't contain a slash
    (tmp_path / name).write_bytes((scenes / "scene_00.png").read_bytes())
    (tmp_path / "good.png").write_bytes((scenes / "scene_01.png").read_bytes())
    rows = [{"picture": each, "answer": evil, "text": evil} for each in (name, "good.png")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    evaluated(
        florence, tmp_path / "out", "prompts", "--rows", tmp_path / "rows.jsonl", "--images", tmp_path,
        "--prompt", "What does the image describe?{input}", "--worst", 1,
    )  # fmt: skip
    text = (tmp_path / "out" / "worst.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("img") == 2
    assert not {"script", "link", "iframe", "a", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert all((attributes.get(key) or "data:").startswith("data:") for key in ("src", "href"))
    policy = next(each["content"] for _, each in page.tags if "http-equiv" in each)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "&lt;script" in text


@pytest.mark.slow
def test_a_picture_that_fails_is_in_no_figure(
    scenes: Path, loaded: list[object], florence: Run, tmp_path: Path
) -> None:
    """A failed picture is counted but in no figure, with status 3; if all fail, there is one error."""
    (tmp_path / "bad.png").write_bytes(b"none")
    (tmp_path / "good.png").write_bytes((scenes / "scene_00.png").read_bytes())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"picture": p, "answer": ""}) for p in ("bad.png", "good.png")))
    words = ("evaluate", "prompts", "--rows", rows, "--images", tmp_path, "--task", "caption")
    status, printed, _ = florence(*words)
    assert status == 3
    assert "1 questions about 1 pictures" in printed
    assert "1 failed and are in no figure; the first: " in printed
    status, printed, said = florence(*words, "--limit", 1)
    assert (status, printed, said.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_a_service_is_asked_the_same(
    fake_server: Server, scenes: Path, florence: Run, tmp_path: Path
) -> None:
    """A service can be evaluated by --url and as one side of a comparison; its settings can't be changed."""
    words = ("detection", "--coco", scenes / "scene_annotations.json", "--images", scenes)
    report, _ = evaluated(florence, tmp_path / "one", *words, "--url", fake_server.url)
    assert report["questions"] == SCENES
    report, _ = evaluated(
        florence, tmp_path / "two", *words, "--resamples", 5, "--compare", fake_server.url,
        f"url={fake_server.url},num_beams=1",
    )  # fmt: skip
    assert all(row["A"] == row["B"] for row in report["differences"] if row["A"] is not None)
    status, _, said = florence(
        "evaluate", *words, "--compare", f"url={fake_server.url},dtype=int8", fake_server.url
    )
    assert (status, "dtype is a setting of the service" in said) == (2, True)


def test_sides_change_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side drops the other checkpoint's revision; its settings and options are read and checked."""
    monkeypatch.setenv("FLORENCE_MODEL", "owner/name")
    monkeypatch.setenv("FLORENCE_REVISION", "v1")
    parser = make_parser()
    base = ["evaluate", "captions", "--images", "x"]
    one, two = read_sides(parser.parse_args([*base, "--compare", "dtype=int8,num_beams=1", "model=demo"]))
    settings = [asking.model_settings(side.arguments) for side in (one, two)]
    assert [(each.model, each.revision, each.dtype) for each in settings] == [
        ("owner/name", "v1", "int8"),
        ("demo", None, "auto"),
    ]
    assert asking.read_options(one.arguments).num_beams == 1
    assert asking.read_options(two.arguments).num_beams is None
    (wrong, _) = read_sides(parser.parse_args([*base, "--compare", "dtype=int3", "demo"]))
    with pytest.raises(SettingsError, match=r"(?i)dtype"):
        asking.model_settings(wrong.arguments)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("captions", "--images", "."), 2, "this needs --coco"),
        (("vqa", "--images", "."), 2, "needs a --task, or a --prompt with {input}"),
        (("captions", "--images", ".", "--task", "sing"), 2, "sing"),
        (("detection", "--images", ".", "--task", "caption"), 2, "<CAPTION> answers with text"),
        (("songs", "--images", "."), 2, "invalid choice: 'songs'"),
        (("captions", "--images", ".", "--limit", "0"), 2, "must be a whole number from 1"),
    ],
)
def test_mistakes_end_it_in_a_line(
    words: tuple[str, ...], status: int, said: str, florence: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake is one line, before any model is loaded."""
    monkeypatch.setenv("FLORENCE_MODEL", "demo")
    assert florence("evaluate", *words)[0] == status
    assert said in florence("evaluate", *words)[2].splitlines()[-1]


@pytest.mark.parametrize("library", ["pycocotools.cocoeval", "pycocoevalcap.cider.cider", "torchmetrics"])
def test_without_its_packages_it_names_them(
    library: str, florence: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its packages the command names the extra before any request."""
    monkeypatch.setitem(sys.modules, library, None)
    status, _, said = florence("evaluate", "captions", "--images", ".")
    assert (status, 'pip install ".[evaluate]"' in said) == (1, True)
