"""The typed results of a task: text, tags, JSON, boxes, quadrilaterals or polygons.

Pixels are those of the picture after its EXIF rotation, floats, x to the right and y down from the top left
corner. Knows nothing about how an answer is generated or parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from florence.export.annotation import Annotation, Drawable
from florence.export.geometry import Box, box_polygon
from florence.types.tasks import Kind

Score = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="How probable it is that this box (quad, polygon) overlaps the true one by at least half "
        "and has its label (text), 0 to 1; null where the probabilities are not known.",
    ),
]
OriginalScore = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="The score of Microsoft's code: exp of the mean log-probability of the item's location "
        "tokens, 0 to 1. Only for ranking: 0.06 is usual for a right box.",
    ),
]
TextScore = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="exp of the mean log-probability of the text's tokens, 0 to 1; null: not known.",
    ),
]

Quad = tuple[float, float, float, float, float, float, float, float]


def config_with_example(example: dict[str, Any]) -> ConfigDict:
    """The pydantic configuration of a frozen model with an example in its schema."""
    return ConfigDict(frozen=True, json_schema_extra={"examples": [example]})


_DETECTION = {"label": "car", "box": [34.2, 160.1, 597.4, 371.8], "score": 0.97, "original_score": 0.07}
_OCR_REGION = {
    "text": "EXIT",
    "quad": [12.5, 8.1, 80.3, 8.4, 80.2, 30.9, 12.4, 30.6],
    "score": 0.95,
    "original_score": 0.06,
}
_INSTANCE = {
    "label": "car",
    "polygons": [[34.2, 300.5, 60.1, 180.3, 590.7, 210.9, 597.4, 371.8]],
    "score": 0.88,
    "original_score": 0.05,
}


class Detection(BaseModel):
    """One box with its label."""

    model_config = config_with_example(_DETECTION)

    label: str = Field(description="What is in the box; empty if the task has no labels.")
    box: Box = Field(description="x1, y1, x2, y2 in pixels, x1 <= x2 and y1 <= y2.")
    score: Score = None
    original_score: OriginalScore = None


class Detections(Drawable, BaseModel):
    """Boxes with labels, in the order in which the model wrote them."""

    model_config = config_with_example({"kind": "boxes", "detections": [_DETECTION]})

    kind: Literal["boxes"] = "boxes"
    detections: list[Detection] = Field(description="All boxes, one entry each, also if they share a label.")

    def annotations(self) -> list[Annotation]:
        return [Annotation(d.label, d.score, [box_polygon(d.box)], "box") for d in self.detections]


class OcrRegion(BaseModel):
    """One piece of text in the picture, with the quadrilateral around it."""

    model_config = config_with_example(_OCR_REGION)

    text: str = Field(description="The text as read, without white space around it.")
    quad: Quad = Field(description="x1, y1, ... x4, y4 in pixels, clockwise from the text's top left corner.")
    score: Score = None
    original_score: OriginalScore = None


class OcrRegions(Drawable, BaseModel):
    """Pieces of text with their places, in reading order."""

    model_config = config_with_example({"kind": "quads", "regions": [_OCR_REGION]})

    kind: Literal["quads"] = "quads"
    regions: list[OcrRegion] = Field(description="All pieces of text.")

    def annotations(self) -> list[Annotation]:
        return [Annotation(r.text, r.score, [r.quad], "quad", category="text") for r in self.regions]


class Instance(BaseModel):
    """One thing with its polygons."""

    model_config = config_with_example(_INSTANCE)

    label: str = Field(description="What it is; empty if the task has no labels.")
    polygons: list[list[float]] = Field(
        description="Its parts, each x1, y1, x2, y2, ... in pixels, with three points or more."
    )
    score: Score = None
    original_score: OriginalScore = None


class Segmentation(Drawable, BaseModel):
    """Things with their polygons, in the order in which the model wrote them."""

    model_config = config_with_example({"kind": "polygons", "instances": [_INSTANCE]})

    kind: Literal["polygons"] = "polygons"
    instances: list[Instance] = Field(description="All things that have polygons.")

    def annotations(self) -> list[Annotation]:
        return [Annotation(i.label, i.score, i.polygons, "area") for i in self.instances if any(i.polygons)]


class Wording(Drawable):
    """A result in words, which names no places."""

    if TYPE_CHECKING:
        text: str

    def annotations(self) -> list[Annotation]:
        return []

    def caption(self) -> str:
        return self.text


class Text(Wording, BaseModel):
    """A caption, a category, a description, or text that was read."""

    model_config = config_with_example(
        {"kind": "text", "text": "A green car in front of a yellow building.", "score": 0.64}
    )

    kind: Literal["text"] = "text"
    text: str = Field(description="The text, without white space around it.")
    score: TextScore = None


def split_tags(text: str) -> list[str]:
    """The tags in a text with commas, without white space around them; empty ones are left out."""
    return [tag for part in text.split(",") if (tag := part.strip())]


class Tags(Wording, BaseModel):
    """The parts of a text that is a list: what stands between its commas."""

    model_config = config_with_example(
        {"kind": "tags", "tags": ["car", "street", "day"], "text": "car, street, day", "score": 0.71}
    )

    kind: Literal["tags"] = "tags"
    tags: list[str] = Field(
        description="The tags in their order, without white space around them; none is empty."
    )
    text: str = Field(description="The generated text, without white space around it.")
    score: Score = None


class JsonValue(Wording, BaseModel):
    """A text that is meant to be JSON."""

    model_config = config_with_example(
        {"kind": "json", "value": {"total": 12.5}, "text": '{"total": 12.5}', "error": None, "score": 0.87}
    )

    kind: Literal["json"] = "json"
    value: Any = Field(description="The value of the JSON; null also if the text is not JSON.")
    text: str = Field(description="The text, without white space around it.")
    error: str | None = Field(default=None, description="Why the text is not JSON; null if it is.")
    score: Score = None


RESULT_TYPES: Final[Mapping[Kind, Any]] = MappingProxyType(
    {
        Kind.TEXT: Text,
        Kind.TAGS: Tags,
        Kind.JSON: JsonValue,
        Kind.BOXES: Detections,
        Kind.QUADS: OcrRegions,
        Kind.POLYGONS: Segmentation,
        Kind.BOXES_OR_POLYGONS: Annotated[Detections | Segmentation, Field(discriminator="kind")],
    }
)
Result = Annotated[
    Text | Tags | JsonValue | Detections | OcrRegions | Segmentation, Field(discriminator="kind")
]
