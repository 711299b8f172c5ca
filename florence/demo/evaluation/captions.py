"""CIDEr of captions, by pycocoevalcap's Cider: how much of the right wording is there, rare words first.

One reference a picture, as this world has. CIDEr goes from 0 to 10, but its runs of one to four words count
alike, so that a right caption of three words comes to 7.5 and no more. Weights of words come from the
references themselves: figures of different sets of pictures can't be compared to the last digit.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from florence.demo.evaluation.metrics import evaluator


class Words(StrEnum):
    """Which tokenizer made words of the captions."""

    PTB = "the Penn Treebank tokenizer"
    PLAIN = "a plain tokenizer (the Penn Treebank's needs Java)"


_WORD = re.compile(r"\w+(?:[-']\w+)*")


def cider(said: Sequence[str], right: Sequence[str], words: Words | None = None) -> tuple[float, float]:
    """The mean CIDEr of captions against one right caption each, and that of the right captions themselves.

    nan of fewer than two, whose words all weigh nothing. Raises MissingLibrary without pycocoevalcap.
    """
    if len(said) < 2:
        return math.nan, math.nan
    tokens = tokenize([*said, *right], words or words_here())
    answers, references = tokens[: len(said)], tokens[len(said) :]
    return _score(answers, references), _score(references, references)


def _score(answers: Sequence[str], references: Sequence[str]) -> float:
    scorer = evaluator("pycocoevalcap.cider.cider").Cider()
    rows = [{number: [text] for number, text in enumerate(texts)} for texts in (references, answers)]
    return float(scorer.compute_score(*rows)[0])


def words_here() -> Words:
    """The evaluators' own tokenizer where it can run: it needs Java, and writes into its own folder."""
    folder = Path(evaluator("pycocoevalcap.tokenizer.ptbtokenizer").__file__).parent
    return Words.PTB if shutil.which("java") and os.access(folder, os.W_OK) else Words.PLAIN


def tokenize(texts: Sequence[str], words: Words) -> list[str]:
    """Each text as small words with spaces between, without punctuation. OSError when Java fails."""
    if words is Words.PLAIN:
        return [" ".join(_WORD.findall(text.lower())) for text in texts]
    written = {number: [{"caption": text}] for number, text in enumerate(texts) if text.strip()}
    made = evaluator("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer().tokenize(written)
    if made.keys() != written.keys():
        raise OSError(f"Java's tokenizer answered {len(made)} lines to {len(written)} captions")
    return [made[number][0] if number in made else "" for number in range(len(texts))]
