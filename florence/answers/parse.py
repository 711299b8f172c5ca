"""`parse_answer`: one generated text, as a typed result and as the original's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from florence.answers.lexemes import Piece, Scorer
from florence.answers.original import post_process_text, read_text
from florence.answers.typed import parse_result
from florence.export.annotation import DrawableAnswer
from florence.types.regions import read_image_size
from florence.types.results import Result
from florence.types.tasks import TASKS, Task


@dataclass(frozen=True, slots=True)
class ParsedAnswer(DrawableAnswer):
    """A generated text, parsed. task: its token. image_size: (width, height) in pixels.

    It is drawn and exported as an `Answer` is.
    """

    task: str
    raw_text: str
    image_size: tuple[float, float] | None
    result: Result

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        return self.image_size and (round(self.image_size[0]), round(self.image_size[1]))

    def florence(self) -> dict[str, Any]:
        """What the original's `post_process_generation` gives for the text, keyed by the task's token.

        Raises RequestError for the one text that the original refuses: with a location number beyond 64 bits.
        """
        return post_process_text(self.task, self.raw_text, self.image_size)


def parse_answer(
    task: str | Task,
    raw_text: str,
    *,
    image_size: Sequence[float] | None = None,
    pieces: Sequence[Piece] = (),
    token_logprobs: Sequence[float] = (),
) -> ParsedAnswer:
    """Parse the text that the model generated for a task; any text can be parsed.

    task: a token, an endpoint's name, or a `Task`; an unknown one is parsed as plain text, as the original
    does. raw_text: with its special tokens. image_size: (width, height) of the picture after EXIF rotation,
    needed by every answer in pixels. pieces: the text cut into the tokens it came from. token_logprobs: one
    number for each token that the pieces count, the start token included; with both, items have scores.
    Raises RequestError when the size is missing or wrong, or the pieces don't fit the text.
    """
    known = task if isinstance(task, Task) else TASKS.find(task)
    token = known.token if known is not None else str(task)
    text = read_text(raw_text)
    size = None if image_size is None else read_image_size(image_size)
    scorer = Scorer(text, pieces, token_logprobs)
    return ParsedAnswer(token, text, size, parse_result(known, text, size, scorer))
