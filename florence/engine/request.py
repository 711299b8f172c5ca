"""The engine's input and output: requests and generations. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from florence.engine.adapters import EngineAdapter
from florence.types.bounds import Sums


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one request is decoded: the resolved options.

    `early_stopping`: True stops once `num_beams` hypotheses are finished, False once no open beam can beat
    them at its current length, "never" once none can even at full length (the three meanings of transformers'
    `generate`). `do_sample`: sample tokens, with one beam. `top_k`: 0 samples from all tokens. `seed`: of the
    sampling, None without sampling.
    """

    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    no_repeat_ngram_size: int
    early_stopping: bool | Literal["never"]
    length_penalty: float
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, the start token counted."""
        return 1 + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One picture and one prompt.

    `pixels`: uint8 [height, width, 3] at the model's input size. `prompt_ids`: token ids, `<s>` and `</s>`
    included. `deadline`: a reading of the engine's clock (`time.monotonic()`) after which the request fails.
    `on_token`: called on the engine's thread with each token of a request with one beam as soon as it is
    decided, forced ones and EOS too; it must be quick and must not raise. `digest`: of the pixels;
    if empty, it is computed here. `adapter`: the adapter to apply, None for none.
    """

    pixels: NDArray[np.uint8]
    prompt_ids: tuple[int, ...]
    options: GenerationOptions
    deadline: float | None = None
    on_token: Callable[[int], None] | None = None
    digest: bytes = b""
    adapter: EngineAdapter | None = None

    @property
    def picture_key(self) -> bytes:
        """The key of the feature cache: requests with equal keys share the tower's features."""
        return self.digest if self.adapter is None else self.digest + self.adapter.picture_key

    def __post_init__(self) -> None:
        if not self.digest:
            digest = sha256(np.ascontiguousarray(self.pixels).data).digest()
            object.__setattr__(self, "digest", digest)


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """Seconds that a request waited, was encoded (tower and encoder), and was decoded."""

    queue_s: float
    encode_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Generation:
    """The engine's output for one request.

    `token_ids`: the start token, then the generated ones up to EOS. `token_logprobs`: one for each generated
    token, so one fewer; forced tokens have 0. `score`: their sum divided by length ** length_penalty.
    `picture_tokens`: tokens of the picture. `token_windows`: for each generated token, how much probability
    lay within each of `bounds.WINDOWS` around it; zeros for a token that is not ordered (`TokenRules`); empty
    where no tokens are ordered.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    score: float
    finish_reason: Literal["stop", "length"]
    picture_tokens: int
    timings: EngineTimings
    token_windows: tuple[Sums, ...] = ()
