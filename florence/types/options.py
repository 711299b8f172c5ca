"""The options of a request, declared and validated: generation, picture, tiles, filters, adapter."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from florence.errors import OptionError, quote
from florence.types.adapters import AdapterOption
from florence.types.bounds import (
    MAX_BEAMS,
    MAX_FACTOR,
    MAX_NGRAM,
    MAX_PENALTY,
    MAX_SEED,
    MAX_TOKENS,
    MAX_TOP_K,
    MIN_FACTOR,
)
from florence.types.filters import ItemFilter
from florence.types.invalid import reason_of
from florence.types.pictures import PictureOptions, Pictures
from florence.types.tiling import TileOptions

MAX_TEXT_CHARS = 65_536
"""Most characters of a text, in every interface: a bound on the tokenizer's work. Whether a prompt fits is
decided by the limit on its tokens, which a text of this length always exceeds: in English it has about
10,000."""

TEXT_FIELDS: Final = ("text", "prompt")
"""Fields of a form that are text as it is; all others are JSON."""

OF_SAMPLING: Final = ("temperature", "top_k", "top_p", "seed")
"""The options that only have a meaning with `do_sample`."""


class GenerationParameters(BaseModel):
    """How to generate. Whatever is left out is as the checkpoint says."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"num_beams": 3, "max_new_tokens": 1024}]},
    )

    num_beams: int | None = Field(
        default=None, ge=1, le=MAX_BEAMS, description="Beams of the search; 1 is greedy."
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS, description="Maximum number of tokens to generate."
    )
    min_new_tokens: int | None = Field(
        default=None, ge=0, le=MAX_TOKENS, description="Minimum number of tokens before the end."
    )
    no_repeat_ngram_size: int | None = Field(
        default=None,
        ge=0,
        le=MAX_NGRAM,
        description="Token sequences of this length may not occur twice; 0: any may.",
    )
    early_stopping: bool | Literal["never"] | None = Field(
        default=None,
        description="When the search ends. true: once it has a finished answer for each beam; false: once no "
        "open beam scores better at its present length; never: once none can, even at full length.",
    )
    length_penalty: float | None = Field(
        default=None,
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
        allow_inf_nan=False,
        description="Above 0 favours long answers, below 0 short ones.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        ge=MIN_FACTOR,
        le=MAX_FACTOR,
        allow_inf_nan=False,
        description="Above 1 makes tokens that already occur less likely, below 1 more likely.",
    )
    do_sample: bool | None = Field(
        default=None,
        description="Sample: draw each token by its probability, with one beam, in place of a search.",
    )
    temperature: float | None = Field(
        default=None,
        ge=MIN_FACTOR,
        le=MAX_FACTOR,
        allow_inf_nan=False,
        description="With do_sample: divides the scores; below 1 favours likely tokens, above 1 evens the "
        "probabilities out.",
    )
    top_k: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_K,
        description="With do_sample: draw from this many of the most probable tokens; 0: from all.",
    )
    top_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="With do_sample: nucleus sampling: draw from the smallest set of tokens with this total "
        "probability.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="With do_sample: the seed of the draws; default: a random one, which the answer "
        "contains.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: object, info: Any) -> object:
        if isinstance(value, bool) and info.field_name not in ("early_stopping", "do_sample", "nms_agnostic"):
            raise ValueError("true and false are not numbers")
        if info.field_name == "early_stopping" and isinstance(value, int | float) and type(value) is not bool:
            raise ValueError("numbers are neither true nor false")
        return value

    @model_validator(mode="after")
    def _order_limits(self) -> GenerationParameters:
        fewest, most = self.min_new_tokens, self.max_new_tokens
        if fewest is not None and most is not None and fewest > most:
            raise ValueError(f"min_new_tokens must not be above max_new_tokens, got {fewest} and {most}")
        return self

    @model_validator(mode="after")
    def _sample_alone(self) -> GenerationParameters:
        if self.do_sample and (self.num_beams or 1) > 1:
            raise ValueError(f"do_sample draws one answer and needs num_beams=1, got {self.num_beams}")
        given = [name for name in OF_SAMPLING if getattr(self, name) is not None]
        if given and self.do_sample is None:  # do_sample=false explicitly turns sampling off
            raise ValueError(f"{' and '.join(given)}: nothing is drawn without do_sample=true")
        return self

    def with_seed(self) -> Self:
        """The same parameters, with a random seed if they sample and have none."""
        if not self.do_sample or self.seed is not None:
            return self
        return self.model_copy(update={"seed": secrets.randbelow(2**32)})  # short enough to copy by hand


class RequestKeywords(TypedDict, total=False):
    """All options of a request as keyword arguments: the fields of `RequestParameters`, which has their
    ranges.

    An option that is left out, or None, has the checkpoint's default, and one of pictures the service's;
    nothing is cut or filtered. `max_new_tokens` has 1024, and is capped at the model's limit
    (`info()["limits"]`). `early_stopping` is as in transformers. A new option is declared here and in the one
    of the bases of `RequestParameters` that it belongs to, one of generation also in
    `florence.engine.request.GenerationOptions`; HTTP, client, library and command line then offer it
    automatically.
    """

    num_beams: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    no_repeat_ngram_size: int | None
    early_stopping: bool | Literal["never"] | None
    length_penalty: float | None
    repetition_penalty: float | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    pictures: Pictures | None
    background: str | None
    frame: int | None
    page: int | None
    tiles: str | None
    tile_scale: float | None
    tile_overlap: float | None
    min_score: float | None
    labels: tuple[str, ...] | None
    nms_iou: float | None
    nms_agnostic: bool | None
    min_size: float | None
    max_items: int | None
    adapter: str | None


class RequestParameters(AdapterOption, ItemFilter, TileOptions, PictureOptions, GenerationParameters):
    """How to read and cut the picture, how to generate, which items to keep, and which adapter answers: all
    options of a request."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"num_beams": 3, "max_new_tokens": 1024, "min_score": 0.5}]},
    )


def check_timeout(timeout_s: float | None) -> None:
    """Raise `OptionError` unless a request's time limit is None, for none, or finite seconds above 0."""
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise OptionError(f"timeout_s must be a number of seconds above 0, got {timeout_s!r}")


def read_request_parameters(options: Mapping[str, object]) -> RequestParameters:
    """Validate the options. Raises `OptionError`, which names the option, its allowed values and the given
    value."""
    try:
        return RequestParameters.model_validate(dict(options))
    except ValidationError as error:
        reasons: dict[Any, str] = {}  # the first error of each option
        for detail in error.errors():
            reasons.setdefault(detail["loc"][:1], explain_option(detail))
        raise OptionError("; ".join(reasons.values())) from error


def explain_option(detail: Mapping[str, Any]) -> str:
    """A pydantic error of `RequestParameters` as a message that says what to change."""
    if not detail["loc"]:
        return str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        return reason_of(detail, RequestParameters.model_fields, "option")
    name = str(detail["loc"][0])
    return f"{name} must be {allowed_values(name)}, got {quote(detail['input'])}"


@cache
def option_schemas() -> dict[str, Any]:
    """The JSON schema of each option."""
    made: dict[str, Any] = RequestParameters.model_json_schema()["properties"]
    return made


def allowed_values(name: str) -> str:
    """An option's allowed values, in words."""
    schema, *others = option_schemas()[name]["anyOf"]
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if "pattern" in schema:
        return "off, auto or a grid such as 3x4" if name == "tiles" else "a colour such as #ffffff"
    if schema["type"] == "string":
        return f"a name of at most {schema['maxLength']} characters"
    if schema["type"] == "boolean":
        return 'true, false or "never"' if len(others) > 1 else "true or false"
    if schema["type"] == "array":
        return f"1 to {schema['maxItems']} texts"
    noun = "an integer" if schema["type"] == "integer" else "a number"
    least, most = (f"{schema[end]:.16g}" for end in ("minimum", "maximum"))
    return f"{noun} from {least} to {most}"
