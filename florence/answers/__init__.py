"""Turns generated text into answers: typed results with scores, and the JSON of Microsoft's original code.

`parse_answer` gives both; `read_answers` reads a file of answers. Knows text, pixels and log-probabilities;
knows nothing about tokenizers, models or HTTP.
"""

from florence.answers.answer import ParsedAnswer, parse_answer
from florence.answers.files import PictureAnswer, read_answers
from florence.answers.lexemes import Piece
from florence.answers.original import post_process_sequence, post_process_text

__all__ = [
    "ParsedAnswer",
    "PictureAnswer",
    "Piece",
    "parse_answer",
    "post_process_sequence",
    "post_process_text",
    "read_answers",
]
