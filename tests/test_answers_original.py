"""The original's JSON: equal to the results of Microsoft's own code, and made in linear time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from waiting import interrupted_if_hung

from florence.answers import post_process_sequence, post_process_text
from florence.errors import RequestError
from florence.types.tasks import TASKS

ADDED_TOKENS = [
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{bin_}>" for bin_ in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>"),
    *("<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>"),
    *("</region_to_desciption>", "<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"),
]
HOSTILE = {
    "locations": "<loc_1>",
    "letters": "a",
    "open brackets": "<",
    "digits": "<loc_1" + "1" * 50,
    "polygons never closed": "<poly>",
    "polygons never opened": "<loc_1></poly>",
    "separators": "<sep>",
    "newlines": "a\n",
    "spaces": " \t",
    "labels": "a<loc_1><loc_2><loc_3>",
    "seven locations": "a" + "<loc_1>" * 7,
    "closing before opening": "</poly><poly>",
}


@pytest.fixture(scope="module")
def cases(shared: Path) -> dict[str, Any]:
    """Texts and sequences with the original's results."""
    loaded: dict[str, Any] = json.loads((shared / "goldens/A/postprocess.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def decode_token(shared: Path) -> Callable[[int], str]:
    """A function that gives a token's text by the original's tokenizer with its added tokens."""
    file = str(shared / "goldens/A/checkpoint/tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file)  # type: ignore[no-untyped-call]
    added = [AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS]
    tokenizer.add_tokens(added, special_tokens=True)
    texts: dict[int, str] = {}

    def decode(token_id: int) -> str:
        if token_id not in texts:
            texts[token_id] = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        return texts[token_id]

    return decode


def test_text_cases_equal_the_original(cases: dict[str, Any]) -> None:
    """Each of the 202 texts gives the original's answer bit for bit, or a `RequestError` where the original
    raises."""
    assert len(cases["text_cases"]) == 202
    for case in cases["text_cases"]:
        arguments = case["task"], case["generated_text"], case["image_size"]
        if "raises" in case["expected"]:
            with pytest.raises(RequestError):
                post_process_text(*arguments)
        else:
            assert post_process_text(*arguments) == case["expected"], case["id"]


def test_sequence_cases_equal_the_original(cases: dict[str, Any], decode_token: Callable[[int], str]) -> None:
    """Each of the 26 sequences gives the original's answer bit for bit, with its inexact scores."""
    assert len(cases["sequence_cases"]) == 26
    for case in cases["sequence_cases"]:
        texts = [decode_token(token_id) for token_id in case["sequence"]]
        scores = case["transition_beam_score"]
        scores = scores and [float(score) for score in scores]
        arguments = case["task"], texts, case["image_size"], scores
        if "raises" in case["expected"]:
            with pytest.raises(RequestError):
                post_process_sequence(*arguments)
        else:
            assert post_process_sequence(*arguments) == case["expected"], case["id"]


def test_generation_cases_equal_the_original(shared: Path, decode_token: Callable[[int], str]) -> None:
    """Every generated answer of the goldens is parsed as the original parses it, by text and by sequence."""
    golden = json.loads((shared / "goldens/A/golden.json").read_text())
    sizes = {image["file"]: (image["width"], image["height"]) for image in golden["images"]}
    rows = scored = 0
    for case in golden["generation"]:
        beams = len(case["sequences"]) // len(case["tasks"])  # sequences returned for each request
        for row, expected in enumerate(case["post_process_sequence_with_scores"]):
            task, size = case["tasks"][row // beams], sizes[case["images"][row // beams]]
            assert post_process_text(task, case["text"][row], size) == case["post_process_text"][row]
            texts = [decode_token(token_id) for token_id in case["sequences"][row]]
            scores = [float(score) for score in case["transition_scores"][row]]
            assert post_process_sequence(task, texts, size, scores) == expected, case["id"]
            rows += 1
            scored += "scores" in expected[task]
    assert rows > len(golden["generation"]) == 107
    assert scored > 0


@pytest.mark.parametrize("task", ["<OD>", "<OCR_WITH_REGION>", "<REFERRING_EXPRESSION_SEGMENTATION>"])
def test_a_missing_size_is_named(task: str) -> None:
    """Without the picture's size, an answer in pixels is refused with a message that names the argument."""
    with pytest.raises(RequestError, match=r"image_size=\(width, height\)"):
        post_process_text(task, "a" + "<loc_1>" * 8, None)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 4301, "٩" * 19])
def test_bins_beyond_64_bits_are_refused(digits: str) -> None:
    """A number beyond 64 bits, in any script, is a `RequestError`."""
    with pytest.raises(RequestError, match="is not a location"):
        post_process_text("<OD>", f"a<loc_1><loc_2><loc_3><loc_{digits}>", (640, 480))


def test_scores_must_be_log_probabilities() -> None:
    """Scores whose exponential overflows are a `RequestError`."""
    texts = ["</s>", "car", *("<loc_1>",) * 4]
    with pytest.raises(RequestError, match="log-probability"):
        post_process_sequence("<OD>", texts, (640, 480), [1e6] * 5)


@given(
    bins=st.lists(st.integers(0, 999) | st.integers(0, 2**53), min_size=4, max_size=4),
    size=st.tuples(*[st.integers(1, 20_000) | st.floats(0.1, 1e5)] * 2),
)
def test_pixels_are_those_of_torch(bins: list[int], size: tuple[float, float]) -> None:
    """Coordinates equal bit for bit those that torch computes from a tensor of the bins, for bins of any
    size."""
    text = "".join(f"<loc_{bin_}>" for bin_ in bins)
    (box,) = post_process_text("<REGION_PROPOSAL>", text, size)["<REGION_PROPOSAL>"]["bboxes"]
    middles = torch.tensor(bins).reshape(2, 2) + 0.5
    expected = torch.stack([middles[:, axis] * (size[axis] / 1000) for axis in (0, 1)], dim=1)
    assert box == expected.flatten().tolist()


def slow_labelled_boxes(text: str) -> list[tuple[str, list[int]]]:
    """Labels and bins by the original's regular expressions (NOTES §8 of the goldens), in quadratic time."""
    found = []
    for phrase in re.findall(r"([^<]+(?:<loc_\d+>){4,})", text):
        label = re.search(r"^\s*(.*?)(?=<od>|</od>|<box>|</box>|<bbox>|</bbox>|<loc_)", phrase)
        for box in re.finditer(r"<loc_(\d+)>" * 4, phrase):
            if label is not None:
                name = label.group().strip().encode("ascii", "ignore").decode("ascii")
                found.append((name, [int(bin_) for bin_ in box.groups()]))
    return found


FRAGMENTS = [
    "<loc_1>",
    "<loc_2>",
    "<loc_3>" * 4,
    "<loc_4>" * 8,
    "car",
    " é ",
    "\n",
    "<",
    ">",
    "<sep>",
    "<poly>",
    "</poly>",
]
TEXTS = st.lists(st.sampled_from([*FRAGMENTS, "loc_5>", "<s>", "</s>", "<loc_"]), max_size=14).map("".join)


@given(text=TEXTS)
def test_boxes_are_those_of_the_plain_expressions(text: str) -> None:
    """The linear pattern finds the same boxes as the original's expressions in any mixture of tokens."""
    text = text.replace("<s>", "").replace("</s>", "")
    answer = post_process_text("<OD>", text, (1000, 1000))["<OD>"]
    found = [
        (label, [round(value - 0.5) for value in box])
        for label, box in zip(answer["labels"], answer["bboxes"], strict=True)
    ]
    assert found == slow_labelled_boxes(text)


@given(text=TEXTS)
def test_quads_are_those_of_the_plain_expression(text: str) -> None:
    """The line-by-line search finds the same quads as the original's expression in any mixture of tokens."""
    answer = post_process_text("<OCR_WITH_REGION>", text, (1000, 1000))["<OCR_WITH_REGION>"]
    matches = re.findall("(.+?)" + r"<loc_(\d+)>" * 8, text.replace("<s>", ""))
    assert answer["labels"] == [match[0] for match in matches]
    bins = [[round(value - 0.5) for value in quad] for quad in answer["quad_boxes"]]
    assert bins == [[int(bin_) for bin_ in match[1:]] for match in matches]


@given(text=TEXTS)
def test_instances_are_those_of_the_plain_expressions(text: str) -> None:
    """Polygons are grouped into the same instances as by the original's expressions in any mixture
    of tokens."""
    task = "<REGION_TO_SEGMENTATION>"
    expected = []
    for group in re.findall(r"(?:(?:<loc_\d+>|<sep>|<poly>|</poly>){4,})", re.sub("<s>|</s>", "", text)):
        if re.search("<loc_|<poly>", group) is None:
            continue
        enclosed = "<poly>" in group and "</poly>" in group
        for instance in re.findall("<poly>(.*?)</poly>", group) if enclosed else [group]:
            runs = [match[0] for match in re.finditer(r"((?:<loc_\d+>)+)(?:<sep>|$)", instance)]
            if runs:
                expected.append([run.count("<loc_") // 2 * 2 for run in runs])
    answer = post_process_text(task, text, (1000, 1000))[task]
    assert [[len(polygon) for polygon in instance] for instance in answer["polygons"]] == expected
    assert len(answer["labels"]) == len(expected)


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task].kind != "text"])
def test_hostile_texts_take_linear_time(task: str) -> None:
    """A hundred thousand characters of any kind are parsed with scores; quadratic code would take minutes."""
    with interrupted_if_hung():
        for unit in HOSTILE.values():
            for ending in ("", "<loc_1>" * 8, "</poly>"):
                text = unit * (100_000 // len(unit)) + ending
                post_process_sequence(task, ["</s>", text], (640, 480), [-1.0])
