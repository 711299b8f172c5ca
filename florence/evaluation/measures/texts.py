"""Metrics for texts and JSON: word accuracy, character error rate, answers to questions, fields.

Edit distances are torchmetrics'. VQA's accuracy follows Antol et al., VQA: Visual Question Answering (2015),
ANLS follows Biten et al., Scene Text Visual Question Answering (2019). Knows nothing about tasks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from florence.evaluation.libraries import evaluator

MAX_WRONG: Final = 0.5  # ANLS: from this share of wrong characters on, an answer scores 0
_AGREE: Final = 3  # VQA: an answer given by this many people is fully right
_ARTICLES: Final = frozenset({"a", "an", "the"})
_DIGITS = MappingProxyType(
    {
        "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
        "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    }
)  # fmt: skip
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_NO_WORD = re.compile(r"(?!(?<=\d)\.(?=\d))[^\w\s]")  # decimal points stay


def plain_text(text: str) -> str:
    """The text with runs of white space replaced by one space."""
    return " ".join(text.split())


def word_accuracy(read: str, written: str) -> tuple[int, int]:
    """How many of the `written` words were read (in any order, each counted once), and how many there are."""
    words = written.split()
    return (Counter(read.split()) & Counter(words)).total(), len(words)


def edits(read: str, written: str) -> int:
    """The edit distance in characters (Levenshtein)."""
    if not read or not written:
        return len(read or written)
    rate = evaluator("torchmetrics.functional.text").char_error_rate(read, written)
    return round(float(rate) * len(written))


def anls(said: str, right: Sequence[str]) -> float:
    """1 minus the share of wrong characters for the closest right answer; 0 if half or more are wrong. Case
    and white space are ignored."""
    return max((_likeness(_folded(said), _folded(each)) for each in right), default=0.0)


def _likeness(said: str, right: str) -> float:
    longer = max(len(said), len(right))
    wrong = edits(said, right) / longer if longer else 0.0
    return 1 - wrong if wrong < MAX_WRONG else 0.0


def _folded(text: str) -> str:
    return plain_text(text).lower()


def vqa_accuracy(said: str, right: Sequence[str]) -> float:
    """The mean of min(1, equal answers / 3) over all subsets that leave out one person's answer.

    With three answers or fewer, 1 if any of them is equal.
    """
    answer, answers = vqa_words(said), [vqa_words(each) for each in right]
    if len(answers) <= _AGREE:
        return float(answer in answers)
    alike = answers.count(answer)
    return sum(min(1.0, (alike - (each == answer)) / _AGREE) for each in answers) / len(answers)


def vqa_words(text: str) -> str:
    """An answer normalised as in VQA: lower case, without punctuation, apostrophes and articles; numbers up
    to ten as digits."""
    bare = text.lower().replace("'", "").replace("’", "")
    words = _NO_WORD.sub(" ", _BETWEEN_DIGITS.sub("", bare)).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def leaves(value: Any) -> Counter[tuple[str, str]]:
    """The leaves of a JSON value: (path, value) of each number, text, boolean and null in it, and of each
    empty object and array. All positions in an array have the same path, `[]`, so its order does not
    count."""
    return Counter(_leaves(value, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, plain_text(value) if isinstance(value, str) else _scalar(value)


def _scalar(value: Any) -> str:
    """A leaf as text: 1 and 1.0 are equal, the text "1" is a different value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"\0{Decimal(repr(value)).normalize()}" if number else f"\0{json.dumps(value)}"
