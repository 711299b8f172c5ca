"""Typed results: parsed from any text, with scores and without the original's flaws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import interrupted_if_hung

from florence.answers import parse_answer
from florence.errors import RequestError
from florence.types.results import Detection, Detections, Instance, OcrRegion, OcrRegions, Segmentation, Text
from florence.types.tasks import TASKS, Kind

SIZE = (1000, 1000)  # the centre of bin n is pixel n + 0.5
IMAGE_SIZES = st.tuples(st.integers(1, 8000), st.integers(1, 8000))
BINS = st.integers(0, 999)
TASK = st.sampled_from([*TASKS, "<FOO>", *(task.name for task in TASKS.values())])
LABELS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<\n"), min_size=1, max_size=12
).filter(lambda label: label.strip() and label[0] not in " \t")
BOX_TASKS = ["<OD>", "<DENSE_REGION_CAPTION>", "<OPEN_VOCABULARY_DETECTION>"]
LIKELY = [
    "<loc_1>",
    "<loc_999>",
    "<loc_1000>",
    "<loc_٣>",
    "<loc_" + "9" * 30 + ">",
    "<poly>",
    "</poly>",
    "<sep>",
]


def locations(bins: Sequence[int]) -> str:
    """Bins in the form that the model writes."""
    return "".join(f"<loc_{bin_}>" for bin_ in bins)


def labels_and_boxes(task: str, text: str) -> list[tuple[str, tuple[float, ...]]]:
    """The detections of a text, for a picture of 1000 by 1000 pixels."""
    result = parse_answer(task, text, image_size=SIZE).result
    assert isinstance(result, Detections)
    return [(found.label, found.box) for found in result.detections]


def polygons(task: str, text: str) -> list[tuple[str, list[int]]]:
    """The label of each instance, and the number of coordinates of each of its polygons."""
    result = parse_answer(task, text, image_size=SIZE).result
    assert isinstance(result, Segmentation)
    return [(found.label, [len(polygon) for polygon in found.polygons]) for found in result.instances]


@given(task=TASK, text=st.text() | st.lists(st.sampled_from(LIKELY) | st.text(max_size=3)).map("".join))
def test_any_text_can_be_parsed(task: str, text: str) -> None:
    """Every task makes a finite result inside the picture from any text."""
    parsed = parse_answer(task, text, image_size=(640, 480))
    dumped = parsed.result.model_dump()
    for found in dumped.get("detections", []) + dumped.get("regions", []):
        assert all(0 < value < 640 for value in found.get("box", found.get("quad")))
    assert parsed.raw_text == text


@given(task=TASK, text=st.lists(st.sampled_from(LIKELY) | st.text(max_size=3)).map("".join))
def test_the_original_answers_or_refuses_a_number(task: str, text: str) -> None:
    """The original's JSON exists for every text, except those with a location beyond 64 bits."""
    parsed = parse_answer(task, text, image_size=(640, 480))
    try:
        answer = parsed.florence()
    except RequestError:
        assert "9" * 19 in text
        return
    assert list(answer) == [parsed.task]


@pytest.mark.parametrize(
    "unit", ["<loc_1>", "a", "<", "<loc_1", "<poly>", "a<sep>", "<s>", "a<loc_1>\n", "</poly>"]
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    """A hundred thousand characters of any kind become a typed result; quadratic code would take minutes."""
    text = unit * (100_000 // len(unit))
    with interrupted_if_hung():
        for task in TASKS:
            parse_answer(task, text, image_size=(640, 480))


@given(
    task=st.sampled_from(BOX_TASKS),
    items=st.lists(st.tuples(LABELS, st.lists(st.tuples(BINS, BINS, BINS, BINS), min_size=1, max_size=3))),
    size=IMAGE_SIZES,
)
def test_boxes_agree_with_the_original(task: str, items: Any, size: tuple[int, int]) -> None:
    """Both parsers give the same boxes for well-formed text, to 1e-3 pixels; typed boxes are sorted and their
    labels keep non-ASCII characters."""
    text = "</s><s>" + "".join(label + "".join(map(locations, boxes)) for label, boxes in items) + "</s>"
    parsed = parse_answer(task, text, image_size=size)
    original = parsed.florence()[task]
    assert isinstance(parsed.result, Detections)
    labels = original.get("labels", original.get("bboxes_labels"))
    for found, box, label in zip(parsed.result.detections, original["bboxes"], labels, strict=True):
        x1, y1, x2, y2 = box
        sorted_box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        assert found.box == pytest.approx(sorted_box, abs=1e-3)
        assert found.label.encode("ascii", "ignore").decode() == label
    expected = [label.strip() for label, boxes in items for _ in boxes]
    assert [found.label for found in parsed.result.detections] == expected


@given(
    items=st.lists(st.tuples(LABELS, st.lists(BINS, min_size=8, max_size=8)), max_size=4),
    size=IMAGE_SIZES,
)
def test_quads_agree_with_the_original(items: Any, size: tuple[int, int]) -> None:
    """Both parsers give the same quads and texts for well-formed text, except for white space and `</s>`."""
    text = "</s><s>" + "".join(label + locations(quad) for label, quad in items) + "</s>"
    parsed = parse_answer("<OCR_WITH_REGION>", text, image_size=size)
    original = parsed.florence()["<OCR_WITH_REGION>"]
    assert isinstance(parsed.result, OcrRegions)
    for found, quad, label in zip(
        parsed.result.regions, original["quad_boxes"], original["labels"], strict=True
    ):
        assert found.quad == pytest.approx(quad, abs=1e-3)
        assert found.text == label.replace("</s>", "").strip()


@given(
    instances=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    bins=st.lists(BINS, min_size=12, max_size=12),
    size=IMAGE_SIZES,
)
def test_polygons_agree_with_the_original(
    instances: list[list[int]], bins: list[int], size: tuple[int, int]
) -> None:
    """Both parsers give the same polygons in the same instances for well-formed text, to 1e-3 pixels."""
    parts = [[locations(bins[: 2 * points]) for points in instance] for instance in instances]
    text = "</s><s>" + "".join(f"<poly>{'<sep>'.join(part)}</poly>" for part in parts) + "</s>"
    for task in ("<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>"):
        parsed = parse_answer(task, text, image_size=size)
        assert isinstance(parsed.result, Segmentation)
        original = parsed.florence()[task]["polygons"]
        for found, polygons in zip(parsed.result.instances, original, strict=True):
            for ours, theirs in zip(found.polygons, polygons, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("</s><s>café<loc_1><loc_2><loc_3><loc_4></s>", ["café"]),
        ("x < y<loc_1><loc_2><loc_3><loc_4>", ["x < y"]),
        ("<b>bold</b><loc_1><loc_2><loc_3><loc_4>", ["<b>bold</b>"]),
        ("two\nlines<loc_1><loc_2><loc_3><loc_4>", ["two\nlines"]),
        ("car\n<loc_1><loc_2><loc_3><loc_4>", ["car"]),
        ("car<loc_9>door<loc_1><loc_2><loc_3><loc_4>", ["door"]),
        ("<od>car<loc_1><loc_2><loc_3><loc_4></od>", ["car"]),
        ("car<sep><loc_1><loc_2><loc_3><loc_4>", ["car"]),
        ("car<loc_1><loc_2><loc_3><loc_4><sep><loc_1><loc_2><loc_3><loc_4>", ["car", "car"]),
        ("car<loc_1><loc_2><loc_3><loc_4><pad><loc_1><loc_2><loc_3><loc_4></s>", ["car", "car"]),
        ("<loc_1><loc_2><loc_3><loc_4>", [""]),
        ("<loc_1><loc_2><loc_3><loc_4><loc_5>", [""]),
        ("car<loc_1><loc_2><loc_3>", []),
        ("car<loc_1><loc_2><sep><loc_3><loc_4>", []),
        ("car<loc_1><loc_2><loc_3><loc_1000>", []),
    ],
)
def test_labels_of_boxes(text: str, expected: list[str]) -> None:
    """Labels are complete and clean, and boxes that the original's parser loses or shifts are correct."""
    box = (1.5, 2.5, 3.5, 4.5)
    assert labels_and_boxes("<OD>", text) == [(label, box) for label in expected]


def test_region_proposals_have_no_labels() -> None:
    """Text between proposals is not a label, as in the original."""
    assert labels_and_boxes("<REGION_PROPOSAL>", "a<loc_1><loc_2><loc_3><loc_4>") == [
        ("", (1.5, 2.5, 3.5, 4.5))
    ]


def test_grounding_drops_phrases_that_name_nothing() -> None:
    """Grounding drops phrases that equal one of the original's banned phrases, case included; longer phrases
    stay."""
    phrases = ["it", "the image", "The image", "ité", "a car", "it is"]
    text = "".join(phrase + "<loc_1><loc_2><loc_3><loc_4>" for phrase in phrases)
    found = labels_and_boxes("<CAPTION_TO_PHRASE_GROUNDING>", text)
    assert [label for label, _ in found] == phrases[2:]
    assert [label for label, _ in labels_and_boxes("<OD>", text)] == phrases


def test_ocr_texts_are_clean() -> None:
    """OCR texts contain no `</s>` or `<pad>` and keep their lines; a quad without its own text has an empty
    one."""
    eight = locations(range(8))
    text = f"</s><s> first\nline {eight}<pad>{eight}<loc_9>second{eight}</s>"
    result = parse_answer("<OCR_WITH_REGION>", text, image_size=SIZE).result
    assert isinstance(result, OcrRegions)
    assert [region.text for region in result.regions] == ["first\nline", "", "second"]
    assert {region.quad for region in result.regions} == {tuple(bin_ + 0.5 for bin_ in range(8))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<poly>" + locations(range(7)) + "</poly>", [("", [6])]),
        ("<poly>" + locations(range(6)), [("", [6])]),
        (locations(range(6)) + "</poly>", [("", [6])]),
        (locations(range(6)) + "<sep>" + locations(range(8)), [("", [6, 8])]),
        ("<sep>" + locations(range(6)) + "<sep>", [("", [6])]),
        ("<poly>" + locations(range(6)) + "<poly>" + locations(range(8)) + "</poly>", [("", [6]), ("", [8])]),
        ("car" + locations(range(6)), [("", [6])]),
        (locations(range(5)), []),
    ],
)
def test_polygons_survive_missing_markup(text: str, expected: list[tuple[str, list[int]]]) -> None:
    """Polygons of three or more points are kept, even if the closing markup is missing."""
    assert polygons("<REFERRING_EXPRESSION_SEGMENTATION>", text) == expected


def test_open_vocabulary_is_boxes_or_polygons() -> None:
    """With a `<poly>` the result is a segmentation, in which boxes become polygons; without one it is
    detections."""
    box, polygon = locations([1, 2, 3, 4]), "<poly>" + locations(range(6)) + "</poly>"
    assert labels_and_boxes("<OPEN_VOCABULARY_DETECTION>", "café" + box) == [("café", (1.5, 2.5, 3.5, 4.5))]
    mixed = parse_answer(
        "<OPEN_VOCABULARY_DETECTION>", f"cup{box}car{polygon}{polygon}", image_size=SIZE
    ).result
    assert isinstance(mixed, Segmentation)
    assert [found.label for found in mixed.instances] == ["cup", "car", "car"]
    assert mixed.instances[0].polygons == [[1.5, 2.5, 3.5, 2.5, 3.5, 4.5, 1.5, 4.5]]


def test_texts_are_stripped() -> None:
    """A text loses only `<s>`, `</s>`, `<pad>` and the white space around it."""
    result = parse_answer("<OCR>", "</s><s> naïve\n text<loc_5> </s><pad>").result
    assert result == Text(text="naïve\n text<loc_5>")


def test_names_and_unknown_tasks() -> None:
    """A task can be given by its endpoint's name, and an unknown task is parsed as text, as in the
    original."""
    assert parse_answer("object_detection", "", image_size=SIZE).florence() == {
        "<OD>": {"bboxes": [], "labels": []}
    }
    parsed = parse_answer("<FOO>", "<s>bar</s>")
    assert parsed.result == Text(text="bar")
    assert parsed.florence() == {"<FOO>": "bar"}


@pytest.mark.parametrize("size", [(0, 480), (640, math.nan), (640,)])
def test_sizes_are_checked(size: tuple[float, ...]) -> None:
    """An impossible picture size is refused, for text answers too."""
    with pytest.raises(RequestError, match="image_size must be"):
        parse_answer("<CAPTION>", "a car", image_size=size)


def test_half_characters_are_refused() -> None:
    """Half of a surrogate pair, which JSON can't hold, is refused with its position; bytes are
    refused too."""
    with pytest.raises(RequestError, match="half of a surrogate pair at character 2"):
        parse_answer("<CAPTION>", "a \ud800")
    with pytest.raises(RequestError, match="must be a string, got bytes"):
        parse_answer("<CAPTION>", b"a")  # type: ignore[arg-type]


def test_pixels_need_a_size() -> None:
    """Only an answer in pixels needs the picture's size; the error names the argument."""
    assert parse_answer("<OD>", "nothing").result == Detections(detections=[])
    with pytest.raises(RequestError, match=r"image_size=\(width, height\)"):
        parse_answer("<OD>", "car<loc_1><loc_2><loc_3><loc_4>")


@pytest.mark.parametrize("task", TASKS)
def test_each_kind_has_its_type(task: str) -> None:
    """Each task gives the result type of its kind, even if nothing was found."""
    types = {
        Kind.TEXT: Text,
        Kind.BOXES: Detections,
        Kind.QUADS: OcrRegions,
        Kind.POLYGONS: Segmentation,
        Kind.BOXES_OR_POLYGONS: Detections,
    }
    assert type(parse_answer(task, "</s><s></s>", image_size=SIZE).result) is types[TASKS[task].kind]


def test_items_are_frozen() -> None:
    """The items of a parsed answer can't be changed."""
    for item in (
        Detection(label="", box=(0, 0, 1, 1)),
        OcrRegion(text="", quad=(0, 0, 1, 0, 1, 1, 0, 1)),
        Instance(label="", polygons=[]),
    ):
        with pytest.raises(ValueError, match="frozen"):
            item.score = 0.5
