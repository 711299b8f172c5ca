"""Metrics for answers in text: captions, reading, questions, JSON.

Knows nothing about files or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from florence.evaluation.files.examples import Answered, TrueThing, picture_numbers
from florence.evaluation.measures.calibration import Judged
from florence.evaluation.measures.captions import CaptionScores, has_java, words_here
from florence.evaluation.measures.figures import Evaluation, Metric, Share, judge, mean_of
from florence.evaluation.measures.masks import outline_of
from florence.evaluation.measures.overlaps import RIGHT_OVERLAP, area_overlap
from florence.evaluation.measures.texts import anls, edits, leaves, plain_text, vqa_accuracy, word_accuracy
from florence.types.results import JsonValue, OcrRegion, OcrRegions, Tags, Text, split_tags

_BEST_CIDER = 10.0


def text_of(row: Answered) -> str:
    """The answer's text; for pieces of text, all of them."""
    if isinstance(row.result, OcrRegions):
        return " ".join(region.text for region in row.result.regions)
    return row.result.caption()


def measure_captions(rows: Sequence[Answered]) -> Evaluation:
    """COCO's metrics of captions."""
    said, right = [text_of(row) for row in rows], [row.example.truth.texts for row in rows]
    scores = CaptionScores(picture_numbers(rows), said, right)
    without = "" if has_java() else "; METEOR needs Java"
    notes = [f"captions by pycocoevalcap after {words_here()}{without}"]
    return Evaluation(rows, [scores], [each / _BEST_CIDER for each in scores.each], [], notes)


def measure_reading(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of a text that was read: exact match, words in any order, character error rate."""
    exact = measure_exact(rows)
    wrong = _error_rate(rows)
    quality = [
        max(0.0, 1 - edited / length)
        for edited, length in zip(wrong.numerators, wrong.denominators, strict=True)
    ]
    return Evaluation(rows, [*exact.parts, _words(rows), wrong], quality, exact.judged)


def measure_writing(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of pieces of text with their quadrilaterals: recall (text and place must be right), precision,
    and words and characters of all pieces."""
    pictures, found_in, quality, judged = [], [], [], []
    hits: list[bool] = []
    answered: list[bool] = []
    for number, row in zip(picture_numbers(rows), rows, strict=True):
        regions = row.result.regions if isinstance(row.result, OcrRegions) else []
        fits = [[_reads(row, region, thing) for region in regions] for thing in row.example.truth.things]
        read, right = [any(of) for of in fits], [any(column) for column in zip(*fits, strict=True)]
        hits += read
        pictures += [number] * len(read)
        answered += right
        found_in += [number] * len(right)
        quality.append(sum(read) / len(read))
        judged += judge([region.score for region in regions], right)
    parts = [
        mean_of("words@50", pictures, hits),
        mean_of("precision@50", found_in, answered),
        _words(rows),
        _error_rate(rows),
    ]
    return Evaluation(rows, parts, quality, judged)


def _reads(row: Answered, region: OcrRegion, thing: TrueThing) -> bool:
    same = plain_text(region.text) == plain_text(thing.label)
    return same and area_overlap([region.quad], outline_of(thing), row.size) >= RIGHT_OVERLAP


def _words(rows: Sequence[Answered]) -> Share:
    counts = [word_accuracy(text_of(row), row.example.truth.texts[0]) for row in rows]
    return Share("words", picture_numbers(rows), [hits for hits, _ in counts], [of for _, of in counts])


def _error_rate(rows: Sequence[Answered]) -> Share:
    pairs = [(plain_text(text_of(row)), plain_text(row.example.truth.texts[0])) for row in rows]
    wrong = [edits(read, written) for read, written in pairs]
    return Share("CER", picture_numbers(rows), wrong, [len(written) for _, written in pairs])


def measure_answers(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of answers to questions: VQA's accuracy, and ANLS."""
    pairs = [(text_of(row), row.example.truth.texts) for row in rows]
    right, like = [vqa_accuracy(*pair) for pair in pairs], [anls(*pair) for pair in pairs]
    pictures = picture_numbers(rows)
    parts = [mean_of("accuracy", pictures, right), mean_of("ANLS", pictures, like)]
    quality = [max(pair) for pair in zip(right, like, strict=True)]
    return Evaluation(rows, parts, quality, _judged_texts(rows, [each == 1 for each in right]))


def measure_exact(rows: Sequence[Answered]) -> Evaluation:
    """Exact match of texts, ignoring white space."""
    right = [plain_text(text_of(row)) in map(plain_text, row.example.truth.texts) for row in rows]
    part = mean_of("exact", picture_numbers(rows), right)
    return Evaluation(rows, [part], [float(each) for each in right], _judged_texts(rows, right))


def measure_values(rows: Sequence[Answered]) -> Evaluation:
    """Metrics of JSON and tags: exact match; recall and precision of fields; and each field by name."""
    pictures = picture_numbers(rows)
    said, true = [_said(row) for row in rows], [leaves(_true_value(row)) for row in rows]
    shared = [a & b for a, b in zip(said, true, strict=True)]
    exact = [a == b for a, b in zip(said, true, strict=True)]
    hits, wholes, given = ([each.total() for each in counts] for counts in (shared, true, said))
    parts: list[Metric] = [
        mean_of("valid", pictures, [_is_valid(row) for row in rows]),
        mean_of("exact", pictures, exact),
        Share("fields", pictures, hits, wholes),
        Share("fields_precision", pictures, hits, given),
    ]
    names = dict.fromkeys(path for each in true for path, _ in each)
    if len(names) > 1:
        parts += [
            Share(f"field {name}", pictures, _named(shared, name), _named(true, name)) for name in names
        ]
    quality = [2 * hit / (a + b) for hit, a, b in zip(hits, wholes, given, strict=True)]
    return Evaluation(rows, parts, quality, _judged_texts(rows, exact))


def _said(row: Answered) -> Counter[tuple[str, str]]:
    if isinstance(row.result, Tags):
        return leaves(row.result.tags)
    return (
        leaves(row.result.value) if isinstance(row.result, JsonValue) and not row.result.error else Counter()
    )


def _true_value(row: Answered) -> Any:
    """The true value; tags may be given as a text with commas."""
    value = row.example.truth.value
    if isinstance(row.result, Tags) and isinstance(value, str):
        return split_tags(value)
    return value


def _is_valid(row: Answered) -> bool:
    return not (isinstance(row.result, JsonValue) and row.result.error)


def _named(counts: Sequence[Counter[tuple[str, str]]], name: str) -> list[float]:
    return [sum(count for (path, _), count in each.items() if path == name) for each in counts]


def _judged_texts(rows: Sequence[Answered], right: Sequence[bool]) -> list[Judged]:
    scores = [row.result.score if isinstance(row.result, Text | Tags | JsonValue) else None for row in rows]
    return judge(scores, right)
