"""Answers with the generated text: those of the library, those in the original's shape only, and those of
`parse_answer`. Knows nothing about how texts are generated.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from florence.answers.lexemes import Piece
from florence.answers.original import post_process_text, read_text
from florence.answers.original_form import original_form
from florence.answers.scorer import Scorer, TokenFacts
from florence.answers.typed import parse_result
from florence.export.annotation import DrawableAnswer
from florence.types.answer import TaskAnswer, Timings, Usage
from florence.types.bounds import Sums
from florence.types.regions import read_image_size
from florence.types.results import Result
from florence.types.tasks import TASKS, Task


class Answer(TaskAnswer[Result]):
    """A typed answer with the generated text and tokens. `repr` leaves the tokens out."""

    example_extra: ClassVar[Mapping[str, Any]] = types.MappingProxyType(
        {
            "raw_text": "</s><s>car<loc_53><loc_333><loc_933><loc_774></s>",
            "token_ids": [2, 0, 5901, 50322, 50602, 51202, 51043, 2],
            "token_logprobs": [0.0, -0.05, -0.09, -0.02, -0.11, -0.07, -0.01],
        }
    )

    raw_text: str = Field(
        description="The generated text with its special tokens, start token included. Of tiles: a line for "
        "each."
    )
    token_ids: list[int] = Field(
        repr=False,
        description="The generated sequence: start token, <s>, ..., </s>; no padding. Of tiles: those of "
        "one after the other, as are their log-probabilities.",
    )
    token_logprobs: list[float] = Field(
        repr=False,
        description="Log-probability of each generated token, in order: one less than token_ids, whose start "
        "token is given. 0 for tokens that were forced.",
    )

    _asked: Task | None = PrivateAttr(None)

    def florence(self) -> dict[str, Any]:
        """The original's JSON: what `post_process_generation(text=raw_text, task, image_size)` gives.

        For a task that is not built in: what the original would give for a task of that kind. For tiles: the
        result in that form (`original_form`). Raises `RequestError` in the one case that the original
        refuses: a location number beyond 64 bits.
        """
        asked = self._asked or TASKS.find(self.task)
        if self.tiles > 1 and asked is not None:
            return {self.task: original_form(asked, self.result)}
        size = (self.image_size.width, self.image_size.height)
        return post_process_text(self._asked or self.task, self.raw_text, size)

    @classmethod
    def of(cls, task: Task, **fields: Any) -> Answer:
        """An answer of this task with these fields."""
        made = cls(task=task.token, **fields)
        made._asked = task
        return made


@dataclass(frozen=True, slots=True)
class OriginalAnswer:
    """An answer in the original's shape only, as the v2 protocol sends it: no typed result is made.

    `task`: its token. `finish_reason`: "stop" or "length". `text`: ASCII JSON of what `Answer.florence()`
    gives. `seed`: of the sampling, None without sampling. `tiles`: number of tiles that the picture was cut
    into.
    """

    task: str
    finish_reason: str
    usage: Usage
    timings: Timings
    checkpoint: str
    text: str
    seed: int | None = None
    tiles: int = 1


@dataclass(frozen=True, slots=True)
class ParsedAnswer(DrawableAnswer):
    """A parsed answer. `task`: its token. `image_size`: (width, height) in pixels, None if it was not given.

    It can be drawn and exported like an `Answer`.
    """

    task: str
    raw_text: str
    image_size: tuple[float, float] | None
    result: Result
    _asked: Task | None = field(default=None, repr=False)

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        return self.image_size and (round(self.image_size[0]), round(self.image_size[1]))

    def florence(self) -> dict[str, Any]:
        """As `Answer.florence`."""
        return post_process_text(self._asked or self.task, self.raw_text, self.image_size)


def parse_answer(
    task: str | Task,
    raw_text: str,
    *,
    image_size: Sequence[float] | None = None,
    pieces: Sequence[Piece] = (),
    token_logprobs: Sequence[float] = (),
    token_windows: Sequence[Sums] = (),
    temperature: float = 1.0,
) -> ParsedAnswer:
    """Parse the text that the model generated for a task; any text can be parsed.

    `task`: a token, an endpoint's name, or a `Task`; for an unknown one the text is parsed as plain text, as
    the original does. `raw_text`: including special tokens. `image_size`: (width, height) of the picture
    after EXIF rotation, needed by every answer in pixels. `pieces`: the text cut into the tokens it came
    from. `token_logprobs`: one for each token that the pieces count, the start token included; with both,
    items have the original's scores. `token_windows`: also one for each token, the probabilities within
    `WINDOWS` around a location (`florence.types.bounds`); with these, items have scores. `temperature`:
    divides the log-odds of scores. Raises `RequestError` when the size is missing or invalid, or the pieces
    don't fit the text.
    """
    known = task if isinstance(task, Task) else TASKS.find(task)
    token = known.token if known is not None else str(task)
    text = read_text(raw_text)
    size = None if image_size is None else read_image_size(image_size)
    scorer = Scorer(text, pieces, TokenFacts(token_logprobs, token_windows), temperature)
    return ParsedAnswer(token, text, size, parse_result(known, text, size, scorer), known)
