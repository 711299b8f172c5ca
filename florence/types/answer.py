"""The answer of one task on one picture, as the typed endpoints send it. Times are seconds."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from florence.export.annotation import DrawableAnswer
from florence.types.results import (
    RESULT_TYPES,
    Detection,
    Detections,
    Instance,
    JsonValue,
    OcrRegion,
    OcrRegions,
    Result,
    Segmentation,
    Tags,
    Text,
    config_with_example,
)
from florence.types.tasks import TASKS, Kind

_IMAGE_SIZE = {"width": 640, "height": 480}
_USAGE = {"picture_tokens": 577, "prompt_tokens": 13, "generated_tokens": 7}
_TIMINGS = {"queue_s": 0.004, "encode_s": 0.031, "decode_s": 0.12, "total_s": 0.158}


class ImageSize(BaseModel):
    """Width and height of the picture after EXIF rotation."""

    model_config = config_with_example(_IMAGE_SIZE)

    width: int = Field(ge=1, description="Pixels from left to right.")
    height: int = Field(ge=1, description="Pixels from top to bottom.")


class Usage(BaseModel):
    """How many tokens a request took."""

    model_config = config_with_example(_USAGE)

    picture_tokens: int = Field(ge=0, description="Tokens of the picture.")
    prompt_tokens: int = Field(ge=0, description="Tokens of the prompt, including <s> and </s>.")
    generated_tokens: int = Field(ge=0, description="Generated tokens, including <s> and </s>.")


class Timings(BaseModel):
    """Durations of the parts of a request, in seconds."""

    model_config = config_with_example(_TIMINGS)

    queue_s: float = Field(ge=0, description="Waiting for the device, seconds.")
    encode_s: float = Field(ge=0, description="Picture and prompt through the encoders, seconds.")
    decode_s: float = Field(ge=0, description="Generating the answer's tokens, seconds.")
    total_s: float = Field(ge=0, description="From the request's arrival to its answer, seconds.")


ResultT = TypeVar("ResultT", bound=Result)  # plain `TaskAnswer` accepts any result, by its `kind`

_ANSWER_EXAMPLE = {
    "image_size": _IMAGE_SIZE,
    "finish_reason": "stop",
    "usage": _USAGE,
    "timings": _TIMINGS,
    "checkpoint": "microsoft/Florence-2-large-ft",
    "seed": None,
    "tiles": 1,
}


def _add_example(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add an example to the schema: its `result` has the kind of this answer's type, boxes for any kind."""
    result_type = model.model_fields["result"].annotation
    if not (isinstance(result_type, type) and issubclass(result_type, BaseModel)):
        result_type = Detections
    result = result_type.model_json_schema()["examples"][0]
    tasks = [task for task in TASKS.values() if task.kind == result["kind"]]
    token = min(tasks, key=lambda task: task.input).token if tasks else "<GENERATE_TAGS>"
    example = {"task": token, "result": result, **_ANSWER_EXAMPLE}
    schema.setdefault("description", TaskAnswer.__doc__)  # a class made by TaskAnswer[...] has no docstring
    schema["examples"] = [example | getattr(model, "example_extra", {})]


class TaskAnswer(DrawableAnswer, BaseModel, Generic[ResultT]):
    """The answer of one task on one picture: the body that the typed endpoints send."""

    model_config = ConfigDict(frozen=True, json_schema_extra=_add_example)

    task: str = Field(description="The task's token, such as <OD>; of a custom prompt: the prompt.")
    result: ResultT = Field(description="The typed result; `kind` names its type.")
    image_size: ImageSize
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the model ended its answer; length: it was cut at the limit on new tokens."
    )
    usage: Usage
    timings: Timings
    checkpoint: str = Field(description="The checkpoint that answered, with its revision if it has one.")
    seed: int | None = Field(
        default=None,
        description="Of the random draws: the same request with the same seed gets the same answer. null "
        "where nothing was drawn.",
    )
    tiles: int = Field(
        default=1,
        ge=1,
        description="Into how many tiles the picture was cut. Of several, `usage` has the tokens of all, and "
        "`timings` the times of the one that was done last.",
    )

    # The result's own content. For type checkers only answers of that kind have it; at run time others raise
    # AttributeError.

    @property
    def text(self: TaskAnswer[Text] | TaskAnswer[Tags] | TaskAnswer[JsonValue]) -> str:
        """The text of an answer in text, tags or JSON."""
        return self.result.text

    @property
    def tags(self: TaskAnswer[Tags]) -> list[str]:
        """The tags of an answer in tags."""
        return self.result.tags

    @property
    def value(self: TaskAnswer[JsonValue]) -> Any:
        """The value of an answer in JSON; None also where the text is not JSON."""
        return self.result.value

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
        """The things of an answer in polygons."""
        return self.result.instances

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name of a type such as `TaskAnswer[Text]`: `TextAnswer`, also in OpenAPI."""
        return f"{getattr(params[0], '__name__', 'Task')}Answer"


def answer_type(kind: Kind) -> type[TaskAnswer[Any]]:
    """The type of answers for tasks of this kind, such as `TaskAnswer[Text]`."""
    made: Any = TaskAnswer.__class_getitem__(RESULT_TYPES[kind])
    return made  # type: ignore[no-any-return]  # parametrised types are made at run time
