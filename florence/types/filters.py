"""The options that filter an answer's items: by score, label, size, overlap and number.

Knows nothing about how items are found; `florence.answers.filtering` applies these options.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_LABELS: Final = 1000
MAX_ITEMS: Final = 10_000
LARGEST_SIZE: Final = 100_000
_Label = Annotated[str, Field(min_length=1, max_length=1000)]


class ItemFilter(BaseModel):
    """Which boxes, quads and polygons stay in the answer. Off by default; texts are not touched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Keep items with at least this score; items without a score are dropped.",
    )
    labels: Annotated[tuple[_Label, ...], Field(min_length=1, max_length=MAX_LABELS)] | None = Field(
        default=None,
        description="Keep items with one of these labels (OCR: texts), ignoring case; a list, or one text "
        "with commas.",
    )
    nms_iou: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop an item whose box overlaps a better one's by more than this (IoU, "
        "non-maximum suppression).",
    )
    nms_agnostic: bool | None = Field(
        default=None, description="Whether nms_iou also compares items with different labels."
    )
    min_size: float | None = Field(
        default=None, ge=0, le=LARGEST_SIZE, description="Minimum width and height of a box, in pixels."
    )
    max_items: int | None = Field(
        default=None, ge=1, le=MAX_ITEMS, description="Maximum number of items; the best are kept."
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`car, person` is two labels; a label that holds a comma needs a list."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @property
    def is_off(self) -> bool:
        """Whether nothing is filtered."""
        return all(
            value is None
            for value in (self.min_score, self.labels, self.nms_iou, self.min_size, self.max_items)
        )
