"""What the typed endpoints take, as pydantic types: the picture, a text or a region, and the options.

Knows BentoML's IO types and how a request's body becomes them. `images` and `types` check the picture's
format and the ranges of options.

BentoML answers an exception of its IO types with an error body of its own, and logs a traceback. So an
invalid input is passed to the endpoint as a value, `Refused`, which the endpoint answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from bentoml import IODescriptor
from bentoml._internal.service.openapi.specification import Schema
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from florence.errors import FlorenceError, ProtocolError, RequestError
from florence.images.headers import FIRST_BYTES, FORMATS, is_picture
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.fetching.urls import MAX_URL_CHARS
from florence.server.http.bodies import kept_body, read_body
from florence.server.json_schemas import REFERENCE
from florence.server.long_strings import Document, parsing_cost, short_strings
from florence.server.picture import EncodedPicture
from florence.server.replies import off_loop
from florence.server.typed.forms import MULTIPART, is_alone, read_alone, read_form
from florence.types.analysis import SentRegion
from florence.types.options import MAX_TEXT_CHARS, RequestParameters
from florence.types.regions import REGION_FORMS
from florence.types.tasks import Input, Kind

_SHAPES = "the body must be a JSON object, multipart/form-data, or a picture with Content-Type: image/jpeg"


class Described(IODescriptor):  # type: ignore[misc]  # BentoML's types are not exported
    """A type of requests or answers that BentoML's own OpenAPI document can hold."""

    @classmethod
    def openapi_components(cls, name: str) -> dict[str, Any]:
        """The type's schema and those inside it, without the keys that the document can't hold."""
        schema = cls.model_json_schema(ref_template=REFERENCE, mode="serialization")
        schemas = {**schema.pop("$defs", {}), cls.__name__: schema}
        known = {field.name for field in Schema.__attrs_attrs__}
        return {
            name: Schema(**{key: value for key, value in each.items() if key in known})
            for name, each in schemas.items()
        }


class Refused:
    """Stands for an input that can't be read, and holds the reason. BentoML passes the attributes that
    `model_fields` names to the endpoint."""

    model_fields: ClassVar[Mapping[str, None]] = MappingProxyType({"error": None})

    def __init__(self, error: Exception) -> None:
        self.error = error


_EITHER: tuple[JsonDict, ...] = (
    {"required": ["image"], "properties": {"image_url": {"type": "null"}}},
    {"required": ["image_url"], "properties": {"image_url": {"type": "string"}, "image": {"type": "null"}}},
)
"""Schemas for the document: there is either the picture or its URL."""
_URL: JsonDict = {"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$"}
_NOT_BLANK: JsonDict = {"pattern": r"\S"}


def _no_picture() -> Any:
    """The default of `image`, for a request with a URL; a plain default would appear in the schema."""
    return None


class PictureInput(Described):
    """The input of every task: the picture, or its URL. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"oneOf": [*_EITHER]})

    image: EncodedPicture = Field(
        default_factory=_no_picture,
        description="The picture: an upload in multipart/form-data, or base64 text, also as a data URI. "
        f"{FORMATS}, recognised by its content.",
    )
    image_url: str | None = Field(
        default=None,
        validate_default=True,
        max_length=MAX_URL_CHARS,
        json_schema_extra=_URL,
        description="In place of image: an http or https URL, from which the service fetches the picture "
        "where FLORENCE_IMAGE_HOSTS allows it.",
    )

    @field_validator("image_url")
    @classmethod
    def _one_picture(cls, url: str | None, info: ValidationInfo) -> str | None:
        if "image" in info.data:  # else `image` is wrong, and its error counts
            if url is None and info.data["image"] is None:
                raise PydanticCustomError(
                    "picture", "image is missing; send the picture, or its URL as image_url"
                )
            if url is not None and info.data["image"] is not None:
                raise PydanticCustomError(
                    "picture", "both image and image_url have a picture; send one of them"
                )
        return url

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        super().__pydantic_init_subclass__()
        cls.multipart_fields = ["image"]  # BentoML detects only paths and PIL images

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> PictureInput | Refused:
        """The input in a request's body. BentoML's own reader would fetch URLs in it."""
        try:
            kind = request.headers.get("content-type", "").lower()
            if kind.startswith(MULTIPART) or is_alone(kind):
                fields = await (read_alone if is_alone(kind) else read_form)(request)
                size = len(fields["image"]) if isinstance(fields.get("image"), str) else 0
                return await off_loop(size, cls.model_validate, fields)
            body = await read_body(request.receive)
            return await off_loop(parsing_cost(body), cls.from_json, body)
        except (FlorenceError, ValidationError, ClientDisconnect) as error:
            return Refused(error)

    @classmethod
    def from_json(cls, body: bytes | bytearray) -> PictureInput:
        if is_picture(bytes(body[:FIRST_BYTES])):
            raise RequestError(f"{_SHAPES}: it is a picture whose Content-Type says something else")
        try:
            content = Document(body).parse() if body else {}
            if isinstance(content, dict):
                image = {"image": content.pop("image")} if "image" in content else {}
                if image.get("image", "") is None and content.get("image_url") is not None:
                    image = {}  # null, as some clients send for a field that is not given
                content = {**image, **short_strings(content)}
        except ProtocolError as error:
            raise RequestError(f"{_SHAPES}: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(_SHAPES)
        made: PictureInput = cls.model_validate(content)
        return made


async def bring_picture(
    fetcher: PictureFetcher, fields: dict[str, Any], timeout_s: float, scope: Scope
) -> float:
    """Fetch the picture at `image_url`, if there is one, into the field `image`; returns the seconds left of
    `timeout_s`. Raises as `PictureFetcher.fetch`."""
    url = fields.pop("image_url")
    if url is None:
        return timeout_s
    clock = asyncio.get_running_loop().time
    end = clock() + timeout_s
    fields["image"] = await fetcher.fetch(url, timeout_s=timeout_s, body=kept_body(scope))
    return max(end - clock(), 0.001)


class PlainInput(RequestParameters, PictureInput):
    """Input of a task that takes nothing but the picture."""


class _PromptField(PictureInput):
    prompt: str = Field(
        max_length=MAX_TEXT_CHARS,
        json_schema_extra=_NOT_BLANK,
        description="The prompt, which the model reads word for word.",
    )
    answer_as: Kind = Field(default=Kind.TEXT, description="How the answer is read.")


class PromptInput(RequestParameters, _PromptField):
    """Input of `/prompt`: a custom prompt."""


class _TextField(PictureInput):
    text: str = Field(
        max_length=MAX_TEXT_CHARS,
        json_schema_extra=_NOT_BLANK,
        description="What to look for, or the caption to ground.",
    )


class TextInput(RequestParameters, _TextField):
    """Input of a task that takes a text."""


class _RegionField(PictureInput):
    region: SentRegion = Field(description=REGION_FORMS)


class RegionInput(RequestParameters, _RegionField):
    """Input of a task that takes a region."""


INPUT_TYPES: Mapping[Input, type[PictureInput]] = MappingProxyType(
    {Input.NONE: PlainInput, Input.TEXT: TextInput, Input.REGION: RegionInput}
)
