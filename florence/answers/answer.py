"""The answer of the Python library: the typed answer, with the generated text and tokens."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from florence.answers.original import post_process_text
from florence.types.answer import TaskAnswer
from florence.types.results import Result


class Answer(TaskAnswer[Result]):
    """A typed answer with the generated text and tokens. `repr` leaves the tokens out."""

    example_extra: ClassVar[Mapping[str, Any]] = types.MappingProxyType(
        {
            "raw_text": "</s><s>car<loc_53><loc_333><loc_933><loc_774></s>",
            "token_ids": [2, 0, 5901, 50322, 50602, 51202, 51043, 2],
            "token_logprobs": [0.0, -0.05, -0.09, -0.02, -0.11, -0.07, -0.01],
        }
    )

    raw_text: str = Field(description="The generated text with its special tokens, start token included.")
    token_ids: list[int] = Field(
        repr=False, description="The generated sequence: start token, <s>, ..., </s>; no padding."
    )
    token_logprobs: list[float] = Field(
        repr=False,
        description="Log-probability of each generated token, in order: one less than token_ids, whose start "
        "token is given. 0 for tokens that were forced.",
    )

    def florence(self) -> dict[str, Any]:
        """The original's JSON: what `post_process_generation(text=raw_text, task, image_size)` gives.

        Raises RequestError in the one case that the original refuses: a location number beyond 64 bits.
        """
        size = (self.image_size.width, self.image_size.height)
        return post_process_text(self.task, self.raw_text, size)
