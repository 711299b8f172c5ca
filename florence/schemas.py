"""The pydantic types that service, library and clients share: results, answers, generation parameters.

Knows nothing about how an answer is generated or parsed. Pixels are those of the picture after its EXIF turn,
floats, x to the right and y down from the top left corner; times are seconds.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from florence.errors import OptionError, quote
from florence.marks import Drawable, DrawableAnswer, Mark, box_outline

Score = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="exp of the mean log-probability of the item's own location tokens (of a text: of its "
        "own tokens), 0 to 1. It ranks items, it is not calibrated. null: no log-probabilities.",
    ),
]
MAX_TEXT_CHARS = 65_536
"""Characters of a text, at every door: a bound on the tokenizer's work. Whether a prompt fits is decided by
the limit on its tokens, which so long a text always exceeds: in English it has about 10,000."""

Box = tuple[float, float, float, float]
Quad = tuple[float, float, float, float, float, float, float, float]


def _config(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [example]})


_DETECTION = {"label": "car", "box": [34.2, 160.1, 597.4, 371.8], "score": 0.93}
_OCR_REGION = {"text": "EXIT", "quad": [12.5, 8.1, 80.3, 8.4, 80.2, 30.9, 12.4, 30.6], "score": 0.88}
_INSTANCE = {
    "label": "car",
    "polygons": [[34.2, 300.5, 60.1, 180.3, 590.7, 210.9, 597.4, 371.8]],
    "score": 0.81,
}


class Detection(BaseModel):
    """One box with its label."""

    model_config = _config(_DETECTION)

    label: str = Field(description="What is in the box; empty where the task gives no labels.")
    box: Box = Field(
        description="x1, y1, x2, y2 in pixels, as the model wrote them: neither sorted nor clipped."
    )
    score: Score = None


class Detections(Drawable, BaseModel):
    """Boxes with labels, in the order in which the model wrote them."""

    model_config = _config({"kind": "boxes", "detections": [_DETECTION]})

    kind: Literal["boxes"] = "boxes"
    detections: list[Detection] = Field(
        description="All boxes, one entry each, also where they share a label."
    )

    def marks(self) -> list[Mark]:
        return [Mark(d.label, d.score, [box_outline(d.box)], "box") for d in self.detections]


class OcrRegion(BaseModel):
    """One piece of text in the picture, with the quadrilateral around it."""

    model_config = _config(_OCR_REGION)

    text: str = Field(description="The text as read, without white space around it.")
    quad: Quad = Field(description="x1, y1, ... x4, y4 in pixels, clockwise from the text's top left corner.")
    score: Score = None


class OcrRegions(Drawable, BaseModel):
    """Pieces of text with their places, in reading order."""

    model_config = _config({"kind": "quads", "regions": [_OCR_REGION]})

    kind: Literal["quads"] = "quads"
    regions: list[OcrRegion] = Field(description="All pieces of text.")

    def marks(self) -> list[Mark]:
        return [Mark(r.text, r.score, [r.quad], "quad", category="text") for r in self.regions]


class Instance(BaseModel):
    """One thing with its outline."""

    model_config = _config(_INSTANCE)

    label: str = Field(description="What it is; empty where the task gives no labels.")
    polygons: list[list[float]] = Field(
        description="The outline's parts, each x1, y1, x2, y2, ... in pixels, with three points or more."
    )
    score: Score = None


class Segmentation(Drawable, BaseModel):
    """Things with their outlines, in the order in which the model wrote them."""

    model_config = _config({"kind": "polygons", "instances": [_INSTANCE]})

    kind: Literal["polygons"] = "polygons"
    instances: list[Instance] = Field(description="All things that were outlined.")

    def marks(self) -> list[Mark]:
        return [Mark(i.label, i.score, i.polygons, "area") for i in self.instances if any(i.polygons)]


class Text(Drawable, BaseModel):
    """A caption, a category, a description, or text that was read."""

    model_config = _config(
        {"kind": "text", "text": "A green car in front of a yellow building.", "score": 0.64}
    )

    kind: Literal["text"] = "text"
    text: str = Field(description="The text, without white space around it.")
    score: Score = None

    def marks(self) -> list[Mark]:
        return []

    def caption(self) -> str:
        return self.text


Result = Annotated[Text | Detections | OcrRegions | Segmentation, Field(discriminator="kind")]


class ImageSize(BaseModel):
    """Width and height of the picture after its EXIF turn."""

    model_config = _config({"width": 640, "height": 480})

    width: int = Field(ge=1, description="Pixels from left to right.")
    height: int = Field(ge=1, description="Pixels from top to bottom.")


class Usage(BaseModel):
    """How many tokens a request took."""

    model_config = _config({"picture_tokens": 577, "prompt_tokens": 13, "generated_tokens": 19})

    picture_tokens: int = Field(ge=0, description="Tokens that the picture became.")
    prompt_tokens: int = Field(ge=0, description="Tokens of the prompt, <s> and </s> counted.")
    generated_tokens: int = Field(ge=0, description="Tokens generated, <s> and </s> counted.")


class Timings(BaseModel):
    """Where the time went, in seconds."""

    model_config = _config({"queue_s": 0.004, "encode_s": 0.031, "decode_s": 0.12, "total_s": 0.158})

    queue_s: float = Field(ge=0, description="Waiting for the device, seconds.")
    encode_s: float = Field(ge=0, description="Picture and prompt through the encoders, seconds.")
    decode_s: float = Field(ge=0, description="Generating the answer's tokens, seconds.")
    total_s: float = Field(ge=0, description="From the request's arrival to its answer, seconds.")


ResultT = TypeVar("ResultT")

_ANSWER_EXAMPLE: Mapping[str, Any] = types.MappingProxyType(
    {
        "image_size": {"width": 640, "height": 480},
        "finish_reason": "stop",
        "usage": {"picture_tokens": 577, "prompt_tokens": 13, "generated_tokens": 7},
        "timings": {"queue_s": 0.004, "encode_s": 0.031, "decode_s": 0.12, "total_s": 0.158},
        "checkpoint": "microsoft/Florence-2-large-ft",
    }
)


def _add_example(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """An example whose `result` is of the kind that this answer's type names; boxes where it is any kind."""
    result_type = model.model_fields["result"].annotation
    if not (isinstance(result_type, type) and issubclass(result_type, BaseModel)):
        result_type = Detections
    result = result_type.model_json_schema()["examples"][0]
    tasks = {"text": "<CAPTION>", "boxes": "<OD>", "quads": "<OCR_WITH_REGION>"}
    example = {
        "task": tasks.get(result["kind"], "<REGION_TO_SEGMENTATION>"),
        "result": result,
        **_ANSWER_EXAMPLE,
    }
    schema.setdefault("description", TaskAnswer.__doc__)  # a class made by TaskAnswer[...] has no docstring
    schema["examples"] = [example | getattr(model, "example_extra", {})]


class TaskAnswer(DrawableAnswer, BaseModel, Generic[ResultT]):
    """The answer of one task on one picture: the body that the typed endpoints send."""

    model_config = ConfigDict(frozen=True, json_schema_extra=_add_example)

    task: str = Field(description="The task's token, such as <OD>.")
    result: ResultT = Field(description="The typed result; its `kind` says which.")
    image_size: ImageSize
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the model ended its answer; length: it was cut at the limit on new tokens."
    )
    usage: Usage
    timings: Timings
    checkpoint: str = Field(description="The checkpoint that answered, with its revision where it has one.")

    # What the result holds, one step nearer. To a type checker only answers of that kind have it; of others
    # it is an AttributeError.

    @property
    def text(self: TaskAnswer[Text]) -> str:
        """The text of an answer in text."""
        return self.result.text

    @property
    def detections(self: TaskAnswer[Detections]) -> list[Detection]:
        """The boxes of an answer in boxes."""
        return self.result.detections

    @property
    def regions(self: TaskAnswer[OcrRegions]) -> list[OcrRegion]:
        """The pieces of text of an answer in quads."""
        return self.result.regions

    @property
    def instances(self: TaskAnswer[Segmentation]) -> list[Instance]:
        """The outlined things of an answer in polygons."""
        return self.result.instances

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """`TaskAnswer[Text]` is called `TextAnswer`, also in OpenAPI."""
        return f"{getattr(params[0], '__name__', 'Task')}Answer"


class Answer(TaskAnswer[Result]):
    """What the Python library returns: the typed answer with the generated text and tokens under it."""

    example_extra: ClassVar[Mapping[str, Any]] = types.MappingProxyType(
        {
            "raw_text": "</s><s>car<loc_53><loc_333><loc_933><loc_774></s>",
            "token_ids": [2, 0, 5901, 50322, 50602, 51202, 51043, 2],
            "token_logprobs": [0.0, -0.05, -0.09, -0.02, -0.11, -0.07, -0.01],
        }
    )

    raw_text: str = Field(description="The generated text with its special tokens, start token included.")
    token_ids: list[int] = Field(
        description="The generated sequence: start token, <s>, ..., </s>; no padding."
    )
    token_logprobs: list[float] = Field(
        description="Log-probability of each generated token, in order: one less than token_ids, whose start "
        "token is given. 0 for tokens that were forced."
    )

    def florence(self) -> dict[str, Any]:
        """The original's JSON: what `post_process_generation(text=raw_text, task, image_size)` gives.

        Raises RequestError in the one case that the original refuses: a location number beyond 64 bits.
        """
        from florence.answers.original import post_process_text  # answers are built of this module's types

        size = (self.image_size.width, self.image_size.height)
        return post_process_text(self.task, self.raw_text, size)


class GenerationParameters(BaseModel):
    """How to generate. Whatever is left out is as the checkpoint says."""

    model_config = _config({"num_beams": 3, "max_new_tokens": 1024}) | ConfigDict(extra="forbid")

    num_beams: int | None = Field(default=None, ge=1, le=8, description="Beams of the search; 1 is greedy.")
    max_new_tokens: int | None = Field(default=None, ge=1, le=4096, description="Most tokens to generate.")
    min_new_tokens: int | None = Field(
        default=None, ge=0, le=4096, description="Fewest tokens before the end."
    )
    no_repeat_ngram_size: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="Length of the token sequences that may not occur twice; 0 allows all.",
    )
    early_stopping: bool | Literal["never"] | None = Field(
        default=None,
        description="Whether the search ends as soon as it has as many finished answers as beams; never: not "
        "until no open beam can beat them even at full length.",
    )
    # Within 10 even 4096 ** length_penalty is a float32.
    length_penalty: float | None = Field(
        default=None,
        ge=-10,
        le=10,
        allow_inf_nan=False,
        description="Above 0 favours long answers, below 0 short ones.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: object, info: Any) -> object:
        if isinstance(value, bool) and info.field_name != "early_stopping":
            raise ValueError("true and false are not numbers")
        return value

    @model_validator(mode="after")
    def _order_limits(self) -> GenerationParameters:
        fewest, most = self.min_new_tokens, self.max_new_tokens
        if fewest is not None and most is not None and fewest > most:
            raise ValueError(f"min_new_tokens must not be above max_new_tokens, got {fewest} and {most}")
        return self


def read_generation_parameters(options: Mapping[str, object]) -> GenerationParameters:
    """The options as parameters; OptionError naming the option, what it may be and what it was."""
    try:
        return GenerationParameters.model_validate(dict(options))
    except ValidationError as error:
        reasons = (_explain(dict(detail)) for detail in error.errors())
        raise OptionError("; ".join(dict.fromkeys(reasons))) from error  # each type of a union has its own


def _explain(detail: dict[str, Any]) -> str:
    """One pydantic error in words that say what to change."""
    if not detail["loc"]:
        return str(detail["ctx"]["error"])
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"unknown option {name[:60]!r}; the options are {', '.join(GenerationParameters.model_fields)}"
    return f"{name} must be {_allowed(name)}, got {quote(detail['input'])}"


def _allowed(name: str) -> str:
    schema = GenerationParameters.model_json_schema()["properties"][name]["anyOf"][0]
    if schema["type"] == "boolean":
        return 'true, false or "never"'
    noun = "an integer" if schema["type"] == "integer" else "a number"
    return f"{noun} from {schema['minimum']} to {schema['maximum']}"
