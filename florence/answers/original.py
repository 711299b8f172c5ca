"""The JSON that Microsoft's `post_process_generation` gives for a generated text, quirks included.

Equal bit for bit, for clients of the original; new clients use `typed`. The quirks: coordinates are float32,
labels of boxes lose their non-ASCII characters and everything before their last `<`, a newline in a label
loses its boxes, OCR labels keep `</s>`, and scores are misaligned after text without boxes.

The patterns match any text in linear time: where the original's patterns would retry at each position of a
long text, an optional group matches the absence of locations here. Knows nothing about tokenizers or tensors.
"""

from __future__ import annotations

import ctypes
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from florence.answers.lexemes import STOP_PHRASES
from florence.errors import RequestError
from florence.types.regions import BINS, PictureSize, need_image_size
from florence.types.tasks import TASKS, Kind, Task

LOCATION: Final = r"<loc_\d+>"  # any number of digits of any script, as in the original
_LOCATION = re.compile(LOCATION)
_RUN = re.compile(rf"(?:{LOCATION})+")
_BARE_BOXES = re.compile(rf"(?:{LOCATION}){{4,}}")
_LABELLED_BOXES = re.compile(rf"([^<]+)((?:{LOCATION}){{4,}})?")
_POLYGON_TOKEN = rf"(?:{LOCATION}|<sep>|<poly>|</poly>)"
_BARE_POLYGONS = re.compile(f"{_POLYGON_TOKEN}{{4,}}")
_LABELLED_POLYGONS = re.compile(f"[^<]+({_POLYGON_TOKEN}{{4,}})?")
_POLYGON = re.compile(rf"((?:{LOCATION})+)(<sep>|\Z)?")
_LABEL_STOP = re.compile("<loc_|<poly>")
_REST_OF_LOCATION = re.compile(r"loc_\d+>")
_MAX_BIN = 2**63 - 1  # the original stores bins as 64-bit integers
_MAX_DIGITS = 4300  # most digits that Python's `int` accepts by default


@dataclass(frozen=True, slots=True)
class _Box:
    """One box. `span`: characters of its locations, counted as the original does, for its scores."""

    label: str
    bins: list[int]
    span: tuple[int, int]


def post_process_text(task: str | Task, text: str, image_size: PictureSize) -> dict[str, Any]:
    """What the original gives for `text=`, keyed by the task; unknown tasks are parsed as plain text. For a
    `Task` that is not built in, what the original would give for a task of that kind.

    `image_size`: (width, height), needed where the text contains locations, and always for
    `<OCR_WITH_REGION>`. Raises `RequestError` where the original raises: without that size, or for a bin
    beyond 64 bits.
    """
    known = task if isinstance(task, Task) else TASKS.get(task)
    token = task.token if isinstance(task, Task) else task
    return {token: _parse(known, read_text(text), image_size)}


def post_process_sequence(
    task: str,
    token_texts: Sequence[str],
    image_size: PictureSize,
    transition_beam_score: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What the original gives for `sequence=`: like `post_process_text`, with `scores` where it has them.

    `token_texts`: each token of the sequence decoded alone; the first one is always dropped.
    `transition_beam_score`: the log-probability of each token but the first; used by `<OD>` and
    `<DENSE_REGION_CAPTION>` only. Raises `RequestError` where the original raises.
    """
    texts = token_texts[1:]
    if transition_beam_score is not None and len(transition_beam_score) != len(texts):
        raise RequestError(
            "transition_beam_score must hold one score for each token but the first: "
            f"{len(texts)} for this sequence, got {len(transition_beam_score)}"
        )
    text = "".join(texts)
    known = TASKS.get(task)
    answer = _parse(known, text, image_size)
    if known and known.scored_by_original and transition_beam_score is not None and answer["bboxes"]:
        spans = [box.span for box in _labelled_boxes(text)]
        answer["scores"] = _scores(spans, texts, transition_beam_score)
    return {task: answer}


def read_text(text: object) -> str:
    """The generated text. Raises `RequestError` where it is not a string or not valid Unicode."""
    if not isinstance(text, str):
        raise RequestError(f"the generated text must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the generated text holds half of a surrogate pair at character {error.start}"
        ) from error
    return text


def _parse(known: Task | None, text: str, image_size: PictureSize) -> Any:
    if known is None or known.kind.is_text:
        return text.replace("<s>", "").replace("</s>", "")
    if known.kind is Kind.QUADS:
        return _ocr_regions(text, image_size)
    if known.kind is Kind.POLYGONS:
        return _polygons(text, image_size, labelled=known.labelled)
    if known.kind is Kind.BOXES_OR_POLYGONS:
        return _boxes_or_polygons(text, image_size)
    if not known.labelled:
        return _boxes_answer(_bare_boxes(text), image_size)
    dropped = STOP_PHRASES if known.drops_stop_phrases else ()
    return _boxes_answer([box for box in _labelled_boxes(text) if box.label not in dropped], image_size)


def _boxes_or_polygons(text: str, image_size: PictureSize) -> dict[str, Any]:
    """The whole text is read as polygons if it contains `<poly>` anywhere, else as boxes."""
    has_polygons = "<poly>" in text
    boxes = _boxes_answer([] if has_polygons else list(_labelled_boxes(text)), image_size)
    polygons = _polygons(text if has_polygons else "", image_size, labelled=True)
    return {
        "bboxes": boxes["bboxes"],
        "bboxes_labels": boxes["labels"],
        "polygons": polygons["polygons"],
        "polygons_labels": polygons["labels"],
    }


def _boxes_answer(boxes: Sequence[_Box], image_size: PictureSize) -> dict[str, Any]:
    return {
        "bboxes": [_pixels(box.bins, image_size) for box in boxes],
        "labels": [box.label.encode("ascii", "ignore").decode("ascii") for box in boxes],
    }


def _labelled_boxes(text: str) -> Iterator[_Box]:
    """Text without `<`, then four or more locations: a box for each complete four of them."""
    cursor = len("<s>") if text.startswith("<s>") else 0
    for match in _LABELLED_BOXES.finditer(_without_specials(text)):
        label, run = match.groups()
        if run is None:
            continue  # like the original's cursor, which gives later boxes the scores of earlier tokens
        if "\n" not in label.lstrip():
            for bins, start, stop in _groups_of_four(run):
                offset = cursor + len(label)
                yield _Box(label.strip(), bins, (offset + start, offset + stop))
        cursor += len(match.group())


def _bare_boxes(text: str) -> list[_Box]:
    runs = _BARE_BOXES.finditer(_without_specials(text))
    return [
        _Box("", bins, (start, stop)) for run in runs for bins, start, stop in _groups_of_four(run.group())
    ]


def _groups_of_four(run: str) -> Iterator[tuple[list[int], int, int]]:
    """The bins of each complete four locations, and where in the run they begin and end."""
    locations = list(_LOCATION.finditer(run))
    for first in range(0, len(locations) - 3, 4):
        four = locations[first : first + 4]
        yield [_bin(location) for location in four], four[0].start(), four[-1].end()


def _ocr_regions(text: str, image_size: PictureSize) -> dict[str, Any]:
    """At least one character on the same line, then eight locations."""
    quads, labels = [], []
    need_image_size(image_size)  # the original needs it even without quads
    for line in text.replace("<s>", "").split("\n"):
        cursor = 0
        for run in _RUN.finditer(line):
            locations = list(_LOCATION.finditer(line, run.start(), run.end()))
            first = 0
            while len(locations) - first >= 8:
                if locations[first].start() == cursor:  # no character before it: it goes into a label
                    first += 1
                    continue
                labels.append(line[cursor : locations[first].start()])
                eight = locations[first : first + 8]
                quads.append(_pixels([_bin(location) for location in eight], image_size))
                cursor = eight[-1].end()
                first += 8
    return {"quad_boxes": quads, "labels": labels}


def _polygons(text: str, image_size: PictureSize, *, labelled: bool) -> dict[str, Any]:
    polygons, labels = [], []
    for label, parts in _read_polygons(_without_specials(text), labelled=labelled):
        runs = [list(_LOCATION.finditer(part)) for part in parts]
        points = [run[: len(run) // 2 * 2] for run in runs]
        polygons.append([_pixels([_bin(location) for location in part], image_size) for part in points])
        labels.append(label)
    return {"polygons": polygons, "labels": labels}


def _read_polygons(text: str, *, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """Each instance's label and its runs of locations, one run for each polygon.

    `text`: without `<s>`, `</s>` and `<pad>`. `labelled`: whether a group needs a text before it, its label.
    """
    for group in _polygon_groups(text, labelled=labelled):
        stop = _LABEL_STOP.search(group)
        if stop is None or "\n" in group[: stop.start()].lstrip():
            continue
        label = group[: stop.start()].strip()
        for instance in _polygon_texts(group):
            runs = [match.group(1) for match in _POLYGON.finditer(instance) if match.group(2) is not None]
            if runs:
                yield label, runs


def _polygon_groups(text: str, *, labelled: bool) -> Iterator[str]:
    if not labelled:
        yield from (match.group() for match in _BARE_POLYGONS.finditer(text))
        return
    for match in _LABELLED_POLYGONS.finditer(text):
        if match.group(1) is not None:
            stray = _REST_OF_LOCATION.match(match.group())  # the rest of a location before the label
            yield match.group()[stray.end() if stray else 0 :]


def _polygon_texts(group: str) -> Iterator[str]:
    """The text between each `<poly>` and the next `</poly>`; the whole group unless it contains both."""
    if "<poly>" not in group or "</poly>" not in group:
        yield group
        return
    start = group.find("<poly>")
    while start >= 0:
        stop = group.find("</poly>", start)
        if stop < 0:
            return
        yield group[start + len("<poly>") : stop]
        start = group.find("<poly>", stop)


def _scores(
    spans: Sequence[tuple[int, int]], token_texts: Sequence[str], log_probs: Sequence[float]
) -> list[float]:
    """exp of the mean log-probability of the tokens whose characters overlap each span."""
    stops = list(accumulate(len(text) for text in token_texts))
    starts = [0, *stops[:-1]]
    scores = []
    for start, stop in spans:
        overlapping = log_probs[bisect_right(stops, start) : bisect_left(starts, stop)]
        try:
            scores.append(math.exp(sum(overlapping) / len(overlapping)))
        except OverflowError as error:
            raise RequestError("transition_beam_score holds values far above any log-probability") from error
    return scores


def _pixels(bins: Sequence[int], image_size: PictureSize) -> list[float]:
    """x, y, x, y, ... as torch computes (bin + 0.5) * (size / 1000): each part a float32."""
    per_bin = [_float32(length / BINS) for length in need_image_size(image_size)]
    middles = [_float32(_float32(bin_) + 0.5) for bin_ in bins]
    return [_float32(middle * per_bin[index % 2]) for index, middle in enumerate(middles)]


def _bin(location: re.Match[str]) -> int:
    digits = location.group()[len("<loc_") : -1]
    value = int(digits) if len(digits) <= _MAX_DIGITS else _MAX_BIN + 1
    if value > _MAX_BIN:
        raise RequestError(
            f"<loc_{digits[:30]}...> is not a location; the model's locations end at <loc_{BINS - 1}>"
        )
    return value


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _without_specials(text: str) -> str:
    return text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")
