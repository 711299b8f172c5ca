"""The arguments of the tools, as pydantic types whose JSON schemas agents read; and the picture in them.

Knows what an agent may send; which task a call asks is in `tools`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from florence.errors import ImageError, RequestError
from florence.mcp.roots import Roots
from florence.types.invalid import reason_of
from florence.types.options import MAX_TEXT_CHARS
from florence.types.tiling import OFF

PICTURE: Final = ("path", "base64", "resource", "url")
"""The ways to give a picture, of which one is needed."""
_DATA_URI: Final = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)

RegionPixels = Annotated[
    list[float],
    Field(min_length=4, max_length=4, description="x1, y1, x2, y2 in pixels of the picture."),
]
SoughtText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
TilesField = Annotated[
    str,
    Field(
        max_length=20,
        description="Cut a large picture with small things into tiles: auto, or a grid such as 3x4.",
    ),
]


class ResourceContents(BaseModel):
    """What a client has read from a resource, of any server."""

    model_config = ConfigDict(extra="ignore")

    uri: str = ""
    blob: str = Field(description="The bytes in base64.")


class PictureArguments(BaseModel):
    """The picture, in one of four ways."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(default=None, description="The picture's file.")
    base64: str | None = Field(default=None, description="Or its bytes: base64, or a data URI.")
    resource: str | ResourceContents | None = Field(
        default=None, description="Or a listed resource's URI, or the contents {uri, blob} of any resource."
    )
    url: str | None = Field(default=None, description="Or an http or https URL that the service may fetch.")
    draw: bool | None = Field(
        default=None,
        description="Return the picture with the answer drawn on it. Default: if it has locations.",
    )

    def check_picture(self, ways: Collection[str]) -> None:
        """Raises RequestError unless exactly one picture is given, and for a URL where `ways` has none."""
        given = [name for name in PICTURE if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise RequestError(f"a picture is needed, as one of {', '.join(ways)}; got {told}")
        if self.url is not None and "url" not in ways:
            raise RequestError("url needs a server that was started with --url; send the picture as base64")

    def picture(self, roots: Roots) -> bytes:
        """The encoded picture; not for one that is given as a URL. Raises ImageError where it can't be
        read."""
        if self.path is not None:
            return roots.read_path(self.path)
        if isinstance(self.resource, str) and not _DATA_URI.match(self.resource):
            return roots.read_uri(self.resource)
        resource = self.resource.blob if isinstance(self.resource, ResourceContents) else self.resource
        return _decode(self.base64 if self.base64 is not None else str(resource))


class DescribeArguments(PictureArguments):
    """Of `describe`."""

    detail: Literal["short", "detailed", "paragraph"] = "short"


class FindArguments(PictureArguments):
    """Of `find`."""

    what: SoughtText = Field(default="", description="What to look for; default: all objects.")
    each_phrase: bool = Field(
        default=False, description="what is a sentence: find each thing that it names (grounding)."
    )
    tiles: TilesField = OFF
    min_score: float | None = Field(default=None, ge=0, le=1, description="Leave out less probable things.")


class ReadArguments(PictureArguments):
    """Of `read`."""

    places: bool = Field(default=False, description="Also return the location of each piece of text.")
    tiles: TilesField = OFF


class SegmentArguments(PictureArguments):
    """Of `segment`."""

    what: SoughtText | None = Field(default=None, description="The thing in words,")
    region: RegionPixels | None = Field(
        default=None, description="or the box around it: x1, y1, x2, y2 in pixels of the picture."
    )


class RegionArguments(PictureArguments):
    """Of `ask_region`."""

    region: RegionPixels
    question: Literal["category", "description", "text"] = Field(
        default="description", description="What it is, in a word; what it looks like; which text it has."
    )


def read_arguments(kind: type[PictureArguments], sent: Mapping[str, Any] | None) -> PictureArguments:
    """The arguments of a call. Raises RequestError, which says what to change."""
    try:
        return kind.model_validate(sent or {})
    except ValidationError as error:
        known = kind.model_fields
        reasons = (reason_of(dict(each), known, "argument", "the arguments") for each in error.errors())
        raise RequestError("; ".join(dict.fromkeys(reasons))) from None


def schema_of(kind: type[PictureArguments], ways: Collection[str]) -> dict[str, Any]:
    """The JSON schema that agents read, without parts that are of no use to them. `ways`: those of `PICTURE`
    that this server takes."""
    schema = _slim(kind.model_json_schema())
    for name in set(PICTURE).difference(ways):
        del schema["properties"][name]
    return {name: value for name, value in schema.items() if name != "description"}


def _slim(schema: Any) -> Any:
    """The schema without titles; a type that may also be null stands there without null."""
    if isinstance(schema, list):
        return [_slim(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _slim(each) for name, each in schema.items() if name != "title" or isinstance(each, dict)}
    kinds = [each for each in kept.get("anyOf", ()) if each != {"type": "null"}]
    if kinds and len(kinds) < len(kept["anyOf"]):
        del kept["anyOf"]
        kept.pop("default", None)
        kept = {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **kept}
    return kept


def _decode(text: str) -> bytes:
    """The bytes of base64 text, with or without a data URI's head. Raises ImageError."""
    head = _DATA_URI.match(text)
    try:
        data = b64decode("".join(text[head.end() if head else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the picture is not valid base64: {error}") from None
    if not data:
        raise ImageError("the picture is empty")
    return data
