"""The option that selects an adapter: the name of one that the service has."""

from __future__ import annotations

from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field


class AdapterKeywords(TypedDict, total=False):
    """The field of `AdapterOption` as a keyword argument."""

    adapter: str | None


class AdapterOption(BaseModel):
    """Whose weights answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="The adapter that answers, one of those in /info; default: none, or the one that "
        "declares the task.",
    )
