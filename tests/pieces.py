"""Pieces of generated text, in the form that the tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence

from florence.answers import Piece


def pieces_of(texts: Sequence[str]) -> list[Piece]:
    """Pieces of one token each, except plain texts, which get two tokens."""
    pieces, start = [], 0
    for text in texts:
        stop = start + (1 if text.startswith("<") else 2)
        pieces.append(Piece(text, start, stop))
        start = stop
    return pieces
