"""Scores an answer's items from their tokens.

Knows positions in the text; knows nothing about tasks or pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from florence.answers.confidence import BOX, OUTLINE, confidence, masses_of_box, masses_of_outline
from florence.answers.lexemes import PADDING, Lexeme, Piece
from florence.errors import RequestError
from florence.types.bounds import Sums


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Facts about each token, including the start token. `logprobs`: log-probabilities. `windows`: for a
    location, the probability within each of `bounds.WINDOWS` around it; for other tokens undefined.

    An empty sequence is unknown.
    """

    logprobs: Sequence[float] = ()
    windows: Sequence[Sums] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one item, None where unknown. `original`: exp of the mean log-probability of its
    locations."""

    score: float | None
    original: float | None

    def fields(self) -> dict[str, float | None]:
        """The scores as fields of typed items."""
        return {"score": self.score, "original_score": self.original}


class Scorer:
    """Scores items by the positions of their text. `temperature`: as in `confidence`."""

    def __init__(
        self, text: str, pieces: Sequence[Piece], facts: TokenFacts, temperature: float = 1.0
    ) -> None:
        """Without pieces or log-probabilities no score is known; without windows only the original's is.

        Raises `RequestError` when the pieces don't make up the text, or count tokens that have no facts.
        """
        self._logprobs, self._windows, self._temperature = facts.logprobs, facts.windows, temperature
        self._pieces = pieces if facts.logprobs else ()
        self._starts: list[int] = []  # index of each piece in the text
        self._tokens: dict[tuple[int, int], int] = {}  # (position in the text, length) -> index of the token
        if not self._pieces:
            return
        if self._windows and len(self._windows) != len(self._logprobs):
            raise RequestError(
                f"token_windows must have one row for each log-probability, {len(self._logprobs)}, "
                f"got {len(self._windows)}"
            )
        cursor = 0
        for piece in self._pieces:
            if not 0 <= piece.start <= piece.stop <= len(self._logprobs):
                raise RequestError(f"{piece} lies outside the {len(self._logprobs)} log-probabilities given")
            if piece.stop - piece.start == 1:
                self._tokens[cursor, len(piece.text)] = piece.start
            self._starts.append(cursor)
            cursor += len(piece.text)
        if "".join(piece.text for piece in self._pieces) != text:
            raise RequestError("the pieces' texts joined must be the generated text")

    def score_box(self, locations: Sequence[Lexeme], label: Sequence[Lexeme]) -> Scores:
        """The scores of a box. `label`: the texts before it that name it."""
        indices = self._indices(locations)
        if indices is None:
            return Scores(None, None)
        masses = masses_of_box([one.bin for one in locations], self._sums(indices))
        return Scores(self._confidence(masses, label, BOX.power), self._mean(indices))

    def score_outlines(self, outlines: Sequence[Sequence[Lexeme]], label: Sequence[Lexeme]) -> Scores:
        """The scores of a quad, or of all polygons of a thing together."""
        indices = self._indices([location for outline in outlines for location in outline])
        if indices is None:
            return Scores(None, None)
        masses, cursor = list[float](), 0
        for outline in outlines:
            own = indices[cursor : cursor + len(outline)]
            masses += masses_of_outline([one.bin for one in outline], self._sums(own))
            cursor += len(outline)
        return Scores(self._confidence(masses, label, OUTLINE.power), self._mean(indices))

    def score_text(self) -> float | None:
        """exp of the mean log-probability of all tokens but `<s>`, `</s>` and `<pad>`."""
        texts = [piece for piece in self._pieces if piece.text not in PADDING]
        return self._mean([index for piece in texts for index in range(piece.start, piece.stop)])

    def _indices(self, locations: Sequence[Lexeme]) -> list[int] | None:
        """Indices of the locations' tokens; None if a location is spelled out in plain text."""
        found = [self._tokens.get((location.start, len(location.text))) for location in locations]
        return None if None in found else [index for index in found if index is not None]

    def _sums(self, indices: Sequence[int]) -> list[Sums]:
        return [self._windows[index] for index in indices] if self._windows else []

    def _confidence(self, masses: Sequence[float], label: Sequence[Lexeme], power: float) -> float | None:
        """The score, or None where there are no windows or a value is NaN."""
        if not self._windows:
            return None
        logprobs = [self._logprobs[index] for one in label for index in self._tokens_of(one)]
        score = confidence(masses, power, logprobs, self._temperature)
        return None if math.isnan(score) else score

    def _tokens_of(self, text: Lexeme) -> range:
        """The tokens of the pieces that contain a text."""
        first = bisect_right(self._starts, text.start) - 1
        last = bisect_left(self._starts, text.start + len(text.text)) - 1
        return range(self._pieces[first].start, self._pieces[last].stop)

    def _mean(self, indices: Sequence[int]) -> float | None:
        if not indices:
            return None
        mean = sum(self._logprobs[index] for index in indices) / len(indices)
        # Rounding can push a log-probability a little above 0.
        return None if math.isnan(mean) else math.exp(min(mean, 0.0))
