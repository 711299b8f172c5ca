"""Captions against references, by pycocoevalcap: BLEU-1 to 4, ROUGE-L, CIDEr, and METEOR where Java is.

CIDEr takes the weights of words from the references themselves: figures of different sets of pictures can't
be compared to the last digit. Where a picture has one reference its runs of one to four words count alike, so
that a right caption of three words comes to 7.5 of 10. Knows nothing about tasks.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from florence.evaluation.libraries import evaluator
from florence.evaluation.measures.figures import Figures, Repeats

ALL_SCORES: Final = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
_TEXT: Final = "caption"  # where the tokenizer looks for it
_RUNS: Final = 4  # BLEU's longest run of words
_WORD = re.compile(r"\w+(?:[-']\w+)*")

Texts = dict[int, list[str]]


class Words(StrEnum):
    """Which tokenizer made words of the captions."""

    PTB = "the Penn Treebank tokenizer"
    PLAIN = "a plain tokenizer (the Penn Treebank's needs Java)"


class CaptionScores:
    """Captions against their references: a `Metric` of the figures.

    pictures: of each caption the number of its picture. said: the captions. right: the references of each,
    one or more. scores: which of `ALL_SCORES` are wanted; METEOR is left out without Java. ending: stands
    behind the figures' names. each: of every caption, its CIDEr, 0 to 10.

    Where pictures are drawn with replacement, the weights of words stay those of all references, and METEOR
    is the mean of the captions' own. CIDEr is nan of fewer than two captions, whose words all weigh nothing.
    Raises MissingLibrary without pycocoevalcap, OSError when Java fails.
    """

    def __init__(
        self,
        pictures: Sequence[int],
        said: Sequence[str],
        right: Sequence[Sequence[str]],
        *,
        scores: Sequence[str] = ALL_SCORES,
        ending: str = "",
        words: Words | None = None,
    ) -> None:
        self._pictures = np.asarray(pictures, dtype=int)
        texts = [*said, *(text for references in right for text in references)]
        tokens = iter(tokenize(texts, words or words_here()))
        answers: Texts = {number: [next(tokens)] for number in range(len(said))}
        references: Texts = {number: [next(tokens) for _ in of] for number, of in enumerate(right)}
        self._ending = ending
        self._scores = [name for name in scores if name != "METEOR" or has_java()]
        self._runs = _runs(answers, references)
        self._each: dict[str, NDArray[Any]] = {}
        self._meteor = math.nan
        self.each = np.full(len(said), math.nan)
        if not said:
            return
        if len(said) > 1:
            self.each = self._each["CIDEr"] = _scorer("cider", "Cider", references, answers)[1]
        if "ROUGE-L" in self._scores:
            self._each["ROUGE-L"] = _scorer("rouge", "Rouge", references, answers)[1]
        if "METEOR" in self._scores:
            self._meteor, self._each["METEOR"] = _meteor(references, answers)

    def figures(self, repeats: Repeats) -> Figures:
        counts = repeats[self._pictures]
        total = counts.sum()
        figures = dict(zip(ALL_SCORES, self._bleu(counts), strict=False))
        for name in ALL_SCORES[_RUNS:]:
            each = self._each.get(name)
            figures[name] = math.nan if each is None or not total else float(counts @ each) / total
        if (repeats == 1).all():
            figures["METEOR"] = self._meteor  # of all captions at once, as METEOR defines it
        return {name + self._ending: figures[name] for name in self._scores}

    def _bleu(self, counts: Repeats) -> Sequence[float]:
        """Of the sums over all captions, which are all that BLEU knows of them."""
        if not counts.sum():
            return [math.nan] * _RUNS
        correct, guess, lengths = (counts @ column for column in self._runs)
        scorer = evaluator("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=_RUNS)
        said, right = lengths
        scorer.ctest = [{"correct": correct, "guess": guess, "testlen": said, "reflen": [right]}]
        bleu: list[float] = scorer.compute_score(option="closest")[0]
        return bleu


def _scorer(module: str, name: str, references: Texts, answers: Texts) -> tuple[float, NDArray[Any]]:
    """pycocoevalcap's score of all, and of each."""
    scorer = getattr(evaluator(f"pycocoevalcap.{module}.{module}"), name)()
    score, each = scorer.compute_score(references, answers)
    return float(score), np.asarray(each, dtype=float)


def _runs(answers: Texts, references: Texts) -> list[NDArray[Any]]:
    """BLEU's counts of each caption: right runs of words and all [captions, 4], and the lengths of caption
    and nearest reference [captions, 2]."""
    scorer = evaluator("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=_RUNS)
    for number, (text,) in answers.items():
        scorer += (text, references[number])
    rows = scorer.ctest
    nearest = [min((abs(length - row["testlen"]), length) for length in row["reflen"])[1] for row in rows]
    lengths = [(row["testlen"], length) for row, length in zip(rows, nearest, strict=True)]
    columns = [row["correct"] for row in rows], [row["guess"] for row in rows], lengths
    return [np.asarray(column, dtype=float).reshape(len(rows), -1) for column in columns]


def _meteor(references: Texts, answers: Texts) -> tuple[float, NDArray[Any]]:
    """METEOR of all, and of each, by a Java program that is ended afterwards."""
    meteor = evaluator("pycocoevalcap.meteor.meteor").Meteor()
    try:
        score, each = meteor.compute_score(references, answers)
    except (ValueError, OSError) as error:  # no number came, or the pipe broke
        meteor.lock.release()
        raise OSError(f"Java's METEOR failed: {error}") from error
    finally:
        meteor.meteor_p.kill()
        meteor.meteor_p.stdout.close()
        meteor.meteor_p.stderr.close()
    return float(score), np.asarray(each, dtype=float)


def has_java() -> bool:
    """Whether METEOR and the Penn Treebank tokenizer have what they need."""
    return shutil.which("java") is not None


def words_here() -> Words:
    """The evaluators' own tokenizer where it can run: it needs Java, and writes into its own folder."""
    folder = Path(evaluator("pycocoevalcap.tokenizer.ptbtokenizer").__file__).parent
    return Words.PTB if has_java() and os.access(folder, os.W_OK) else Words.PLAIN


def tokenize(texts: Sequence[str], words: Words) -> list[str]:
    """Each text as small words with spaces between, without punctuation. OSError when Java fails."""
    if words is Words.PLAIN:
        return [" ".join(_WORD.findall(text.lower())) for text in texts]
    lines = [" ".join(text.split()) for text in texts]  # a line each: whatever ends a line is a space
    written = {number: [{_TEXT: line}] for number, line in enumerate(lines) if line}
    made = evaluator("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer().tokenize(written)
    if made.keys() != written.keys():
        raise OSError(f"Java's tokenizer answered {len(made)} lines to {len(written)} captions")
    return [made[number][0] if number in made else "" for number in range(len(texts))]
