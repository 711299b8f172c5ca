"""The option that selects an adapter: the name of one that the service has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
