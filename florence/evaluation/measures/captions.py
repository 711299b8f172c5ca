"""Metrics of captions against references, by pycocoevalcap: BLEU-1 to 4, ROUGE-L, CIDEr, and METEOR where
Java is installed.

CIDEr takes its word weights from the references themselves, so figures of different sets of pictures can't be
compared exactly. n-grams of one to four words count equally, so a right caption of three words gets 7.5 of 10
where a picture has one reference. Knows nothing about tasks.
"""

from __future__ import annotations

import itertools
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
_TEXT: Final = "caption"  # the tokenizer's key for the text
_MAX_NGRAM: Final = 4  # BLEU's longest n-gram
_WORD = re.compile(r"\w+(?:[-']\w+)*")

Texts = dict[int, list[str]]


class Words(StrEnum):
    """The tokenizer that split the captions into words."""

    PTB = "the Penn Treebank tokenizer"
    PLAIN = "a plain tokenizer (the Penn Treebank's needs Java)"


class CaptionScores:
    """A `Metric` of captions against their references.

    `pictures`: index of each caption's picture. `candidates`: the captions. `references`: one or more for
    each. `scores`: which of `ALL_SCORES` to compute; METEOR is left out without Java. `ending`: suffix of the
    figures' names. `each`: the CIDEr of each caption, 0 to 10.

    In bootstrap samples, word weights stay those of all references, and METEOR is the mean over captions.
    CIDEr is nan for fewer than two captions, where all word weights are zero. Raises `MissingLibrary` without
    pycocoevalcap, `OSError` when Java fails.
    """

    def __init__(
        self,
        pictures: Sequence[int],
        candidates: Sequence[str],
        references: Sequence[Sequence[str]],
        *,
        scores: Sequence[str] = ALL_SCORES,
        ending: str = "",
        words: Words | None = None,
    ) -> None:
        self._pictures = np.asarray(pictures, dtype=int)
        texts = [*candidates, *itertools.chain.from_iterable(references)]
        tokens = iter(tokenize(texts, words or words_here()))
        said: Texts = {number: [next(tokens)] for number in range(len(candidates))}
        right: Texts = {number: [next(tokens) for _ in of] for number, of in enumerate(references)}
        self._ending = ending
        self._scores = [name for name in scores if name != "METEOR" or has_java()]
        self._bleu_counts = _bleu_counts(said, right)
        self._each: dict[str, NDArray[Any]] = {}
        self._meteor = math.nan
        self.each = np.full(len(candidates), math.nan)
        if not candidates:
            return
        if len(candidates) > 1:
            self.each = self._each["CIDEr"] = _scorer("cider", "Cider", right, said)[1]
        if "ROUGE-L" in self._scores:
            self._each["ROUGE-L"] = _scorer("rouge", "Rouge", right, said)[1]
        if "METEOR" in self._scores:
            self._meteor, self._each["METEOR"] = _meteor(right, said)

    def figures(self, repeats: Repeats) -> Figures:
        counts = repeats[self._pictures]
        total = counts.sum()
        figures = dict(zip(ALL_SCORES, self._bleu(counts), strict=False))
        for name in ALL_SCORES[_MAX_NGRAM:]:
            each = self._each.get(name)
            figures[name] = math.nan if each is None or not total else float(counts @ each) / total
        if (repeats == 1).all():
            figures["METEOR"] = self._meteor  # corpus-level, as METEOR defines it
        return {name + self._ending: figures[name] for name in self._scores}

    def _bleu(self, counts: Repeats) -> Sequence[float]:
        """BLEU from sums over all captions."""
        if not counts.sum():
            return [math.nan] * _MAX_NGRAM
        correct, guess, lengths = (counts @ column for column in self._bleu_counts)
        scorer = evaluator("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=_MAX_NGRAM)
        length, reference_length = lengths
        scorer.ctest = [{"correct": correct, "guess": guess, "testlen": length, "reflen": [reference_length]}]
        bleu: list[float] = scorer.compute_score(option="closest")[0]
        return bleu


def _scorer(module: str, name: str, references: Texts, answers: Texts) -> tuple[float, NDArray[Any]]:
    """pycocoevalcap's score of all captions together, and of each."""
    scorer = getattr(evaluator(f"pycocoevalcap.{module}.{module}"), name)()
    score, each = scorer.compute_score(references, answers)
    return float(score), np.asarray(each, dtype=float)


def _bleu_counts(answers: Texts, references: Texts) -> list[NDArray[Any]]:
    """BLEU's counts for each caption: matching n-grams and all n-grams [captions, 4], and the lengths of the
    caption and of the closest reference [captions, 2]."""
    scorer = evaluator("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=_MAX_NGRAM)
    for number, (text,) in answers.items():
        scorer += (text, references[number])
    rows = scorer.ctest
    nearest = [min((abs(length - row["testlen"]), length) for length in row["reflen"])[1] for row in rows]
    lengths = [(row["testlen"], length) for row, length in zip(rows, nearest, strict=True)]
    columns = [row["correct"] for row in rows], [row["guess"] for row in rows], lengths
    return [np.asarray(column, dtype=float).reshape(len(rows), -1) for column in columns]


def _meteor(references: Texts, answers: Texts) -> tuple[float, NDArray[Any]]:
    """METEOR of all captions together, and of each, by a Java process that is ended afterwards."""
    meteor = evaluator("pycocoevalcap.meteor.meteor").Meteor()
    try:
        score, each = meteor.compute_score(references, answers)
    except (ValueError, OSError) as error:  # not a number, or a broken pipe
        meteor.lock.release()
        raise OSError(f"Java's METEOR failed: {error}") from error
    finally:
        meteor.meteor_p.kill()
        meteor.meteor_p.stdout.close()
        meteor.meteor_p.stderr.close()
    return float(score), np.asarray(each, dtype=float)


def has_java() -> bool:
    """Whether there is Java, which METEOR and the Penn Treebank tokenizer need."""
    return shutil.which("java") is not None


def words_here() -> Words:
    """The evaluators' own tokenizer where it can run (it needs Java and writes into its package's folder),
    else the plain one."""
    folder = Path(evaluator("pycocoevalcap.tokenizer.ptbtokenizer").__file__).parent
    return Words.PTB if has_java() and os.access(folder, os.W_OK) else Words.PLAIN


def tokenize(texts: Sequence[str], words: Words) -> list[str]:
    """Each text as lower-case words separated by spaces, without punctuation. Raises `OSError` when Java
    fails."""
    if words is Words.PLAIN:
        return [" ".join(_WORD.findall(text.lower())) for text in texts]
    lines = [" ".join(text.split()) for text in texts]  # one line for each text: line breaks become spaces
    written = {number: [{_TEXT: line}] for number, line in enumerate(lines) if line}
    made = evaluator("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer().tokenize(written)
    if made.keys() != written.keys():
        raise OSError(f"Java's tokenizer answered {len(made)} lines to {len(written)} captions")
    return [made[number][0] if number in made else "" for number in range(len(texts))]
