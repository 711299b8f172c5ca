"""The typed endpoints: one BentoML API for each task, its input and answer as pydantic types.

Knows HTTP bodies (multipart or JSON) and BentoML's IO types. `images` and `types` check the picture's format,
the tasks' rules on text and regions, and the ranges of options.

BentoML answers an exception of its IO types with an error body of its own, and logs a traceback. So an
invalid input is passed to the endpoint as a value, `Refused`, which the endpoint answers.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Final, Protocol

import bentoml
from bentoml import IODescriptor
from bentoml._internal.service.openapi.specification import Schema
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.errors import (
    FlorenceError,
    ProtocolError,
    RequestError,
    TaskError,
    TooMuchStructure,
    quote,
)
from florence.images.headers import FORMATS
from florence.server.bodies import read_body
from florence.server.long_strings import Document, short_strings
from florence.server.outcomes import await_answer
from florence.server.picture import EncodedPicture
from florence.server.replies import off_loop, reply_or_error
from florence.types.analysis import SentRegion
from florence.types.answer import TaskAnswer, answer_type
from florence.types.options import MAX_TEXT_CHARS, RequestParameters, explain_option
from florence.types.regions import LOCATIONS_EXAMPLE, PIXELS_EXAMPLE
from florence.types.results import Result
from florence.types.tasks import Input, Kind, Task, prompt_task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

MULTIPART: Final = "multipart/form-data"
_MOST_PARTS: Final = 32
_MOST_TEXT_PART: Final = 32 * 2**20  # bytes of a part that is no file: it is decoded in one go
_MOST_FIELD: Final = 12 * MAX_TEXT_CHARS  # bytes of a part that is no picture: a text, escaped twice
_PIECE: Final = 2**20
_BENTOML_CLIENT: Final = "BentoML HTTP Client/"  # writes all values of a form in JSON


class Described(IODescriptor):  # type: ignore[misc]  # BentoML's types are not exported
    """A type of requests or answers that BentoML's own OpenAPI document can hold."""

    @classmethod
    def openapi_components(cls, name: str) -> dict[str, Any]:
        """The type's schema and those inside it, without the keys that the document can't hold."""
        schema = cls.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas = {**schema.pop("$defs", {}), cls.__name__: schema}
        known = {field.name for field in Schema.__attrs_attrs__}
        return {
            name: Schema(**{key: value for key, value in each.items() if key in known})
            for name, each in schemas.items()
        }


class Refused:
    """The reason why an input can't be read, in its place. BentoML passes `model_fields` to the endpoint."""

    model_fields: ClassVar[Mapping[str, None]] = MappingProxyType({"error": None})

    def __init__(self, error: FlorenceError | ValidationError) -> None:
        self.error = error


class PictureInput(Described):
    """The input of every task: the picture. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: EncodedPicture = Field(
        description="The picture: an upload in multipart/form-data, or base64 text, also as a data URI. "
        f"{FORMATS}, told by its bytes."
    )

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        super().__pydantic_init_subclass__()
        cls.multipart_fields = ["image"]  # BentoML detects only paths and PIL images

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> PictureInput | Refused:
        """The input in a request's body. BentoML's own reader would fetch URLs in it."""
        try:
            if request.headers.get("content-type", "").lower().startswith(MULTIPART):
                fields = await _read_form(request)
                size = len(fields["image"]) if isinstance(fields.get("image"), str) else 0
                return await off_loop(size, cls.model_validate, fields)
            body = await read_body(request.receive)
            return await off_loop(len(body), cls._from_json, body)
        except (FlorenceError, ValidationError) as error:
            return Refused(error)
        except ClientDisconnect:
            return Refused(RequestError("the client left while it sent its request"))

    @classmethod
    def _from_json(cls, body: bytes | bytearray) -> PictureInput:
        try:
            content = Document(body).parse() if body else {}
            if isinstance(content, dict):
                image = {name: content.pop(name) for name in ("image",) if name in content}
                content = {**image, **short_strings(content)}
        except ProtocolError as error:
            raise RequestError(f"the body must be a JSON object or multipart/form-data: {error}") from None
        if not isinstance(content, dict):
            raise RequestError("the body must be a JSON object or multipart/form-data")
        made: PictureInput = cls.model_validate(content)
        return made


class PlainInput(RequestParameters, PictureInput):
    """Input of a task that takes nothing but the picture."""


class _PromptField(PictureInput):
    prompt: str = Field(max_length=MAX_TEXT_CHARS, description="What the model reads, word for word.")
    answer_as: Kind = Field(default=Kind.TEXT, description="How its answer is read.")


class PromptInput(RequestParameters, _PromptField):
    """Input of `/prompt`: a prompt of one's own."""


class _TextField(PictureInput):
    text: str = Field(max_length=MAX_TEXT_CHARS, description="What to look for, or the caption to ground.")


class TextInput(RequestParameters, _TextField):
    """Input of a task that takes a text."""


class _RegionField(PictureInput):
    region: SentRegion = Field(
        description="x1, y1, x2, y2 in pixels of the picture after EXIF rotation, or as text <loc_x1><loc_y1>"
        "<loc_x2><loc_y2> in thousandths of it."
    )


class RegionInput(RequestParameters, _RegionField):
    """Input of a task that takes a region."""


INPUT_TYPES: Mapping[Input, type[PictureInput]] = MappingProxyType(
    {Input.NONE: PlainInput, Input.TEXT: TextInput, Input.REGION: RegionInput}
)


@cache
def output_type(kind: Kind) -> type[BaseModel]:
    """The type of an endpoint's answer, by the kind of its task's result."""
    name = "".join(word.title() for word in kind.split("_")) + "Answer"
    bases: Any = (Described, answer_type(kind))
    made: type[BaseModel] = create_model(name, __base__=bases, __doc__=TaskAnswer.__doc__)
    return made


class PromptAnswer(Described, TaskAnswer[Result]):
    """The answer to a prompt; its result is of the kind that was asked for."""


class Endpoints(Protocol):
    """The members of the service that endpoints use."""

    model: Florence2
    timeout_s: float


def endpoint(task: Task) -> Any:
    """The BentoML API of a task: `POST /<name>`."""
    input_type = INPUT_TYPES[task.input]

    async def answer(service: Endpoints, fields: dict[str, Any]) -> BaseModel:
        return await answer_task(service.model, service.timeout_s, task.token, fields)

    def refusal(error: ValidationError) -> RequestError:
        return explain(error, task, input_type)

    summary = f"{task.summary} Task {task.token}."
    return create_api(task.name, summary, input_type, output_type(task.kind), answer, refusal)


def prompt_endpoint() -> Any:
    """The BentoML API of a prompt of one's own: `POST /prompt`."""

    async def answer(service: Endpoints, fields: dict[str, Any]) -> BaseModel:
        task = prompt_task(fields.pop("prompt"), fields.pop("answer_as"))
        return await answer_task(service.model, service.timeout_s, task, fields)

    def refusal(error: ValidationError) -> RequestError:
        return explain(error, None, PromptInput)

    summary = "Answer a prompt of one's own, which the model reads word for word."
    return create_api("prompt", summary, PromptInput, PromptAnswer, answer, refusal)


async def answer_task(
    model: Florence2, timeout_s: float, task: str | Task, fields: dict[str, Any]
) -> BaseModel:
    """The answer to a task, by the fields of its input."""
    image, text, region = fields.pop("image"), fields.pop("text", None), fields.pop("region", None)
    future = model.submit(
        image,
        task,
        text,
        region=region,
        timeout_s=timeout_s,
        parameters=RequestParameters.model_construct(**fields),  # validated with the input
    )
    return task_answer(await await_answer(future, timeout_s))


def create_api(
    name: str,
    summary: str,
    input_type: type[PictureInput],
    output: type[BaseModel],
    answer: Callable[[Endpoints, dict[str, Any]], Awaitable[BaseModel]],
    refusal: Callable[[ValidationError], RequestError],
) -> Any:
    """A BentoML API, `POST /<name>`. answer: makes the body from the input's fields; refusal: the error for
    an input that is not valid."""

    async def work(service: Endpoints, fields: dict[str, Any]) -> BaseModel:
        error = fields.pop("error", None)
        if error is not None:
            raise refusal(error) if isinstance(error, ValidationError) else error
        return await answer(service, fields)

    async def call(service: Endpoints, **fields: Any) -> BaseModel | Response:
        return await reply_or_error(work(service, fields))

    call.__name__, call.__doc__ = name, summary
    api: Callable[..., Any] = bentoml.api(input_spec=input_type, output_spec=output)
    return api(call)


def task_answer(answer: Answer) -> BaseModel:
    """The answer without the generated text and tokens, which endpoints don't send."""
    fields = {name: getattr(answer, name) for name in TaskAnswer.model_fields}
    return TaskAnswer[Result].model_construct(**fields)


async def _read_form(request: Request) -> dict[str, Any]:
    """The fields of a multipart body, in memory; the service's limit on bodies bounds it."""
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=_MOST_PARTS,
        max_fields=_MOST_PARTS,
        max_part_size=_MOST_TEXT_PART,
    )
    parser.spool_max_size = 2**31  # no temporary file: the disk may be read-only
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"the body is not valid multipart/form-data: {error.message}") from None
    try:
        in_json = request.headers.get("user-agent", "").startswith(_BENTOML_CLIENT)
        return {name: await _read_part(form, name, in_json=in_json) for name in form}
    finally:
        await form.close()
        for file in parser._files_to_close_on_error:  # of parts without an end, which are not in the form
            file.close()


async def _read_part(form: FormData, name: str, *, in_json: bool) -> Any:
    """One part's value: a file's bytes, or text. Numbers and lists are JSON; a text is plain, unless
    `in_json`."""
    parts = form.getlist(name)
    if len(parts) > 1:
        raise RequestError(f"{name[:60]} is sent {len(parts)} times; send it once")
    part = parts[0]
    size = (part.size or 0) if isinstance(part, UploadFile) else len(part)
    if name != "image" and size > _MOST_FIELD:
        raise RequestError(f"{name[:60]} has {size} bytes; up to {_MOST_FIELD} are allowed")
    if isinstance(part, UploadFile):
        data = await off_loop(size, _read_upload, part.file)
        if name == "image":
            return data
        part = data.decode("utf-8", "replace")
    if name == "image" or (name in ("text", "prompt") and not in_json):
        return part
    return await off_loop(size, _read_value, part)


def _read_upload(file: BinaryIO) -> bytes | bytearray:
    """A file's bytes; a large one in pieces, none of which holds the interpreter's lock for long."""
    data = file.read(_PIECE)
    if len(data) < _PIECE:
        return data
    whole = bytearray(data)
    while data := file.read(_PIECE):
        whole += data
    return whole


def _read_value(text: str) -> Any:
    """What the text means as JSON; the text itself where it is none."""
    try:
        return short_strings(Document(text.encode("utf-8", "surrogatepass")).parse())
    except TooMuchStructure as error:
        raise RequestError(str(error)) from None
    except ProtocolError:
        return text


def explain(error: ValidationError, task: Task | None, input_type: type[BaseModel]) -> RequestError:
    """Which field of an input is wrong, and what is allowed."""
    allowed = ", ".join(input_type.model_fields)
    reasons: list[str] = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0])[:60] if detail["loc"] else ""
        if task and (
            name == "region" or (name == "text" and detail["type"] in ("missing", "extra_forbidden"))
        ):
            return TaskError(_input_rule(task, name))
        if detail["type"] == "extra_forbidden":
            reasons.append(f"unknown field {name!r}; the fields are {allowed}")
        elif detail["type"] == "missing":
            reasons.append(f"{name} is missing")
        elif name in RequestParameters.model_fields:
            reasons.append(explain_option(detail))
        else:
            message = detail["msg"].removeprefix("Value error, ")
            got = "" if name in ("", "image") else f", got {quote(detail['input'], 60)}"
            named = name and "picture" not in message  # a message on the picture names it itself
            reasons.append(f"{name}: {message}{got}" if named else message)
    return RequestError("; ".join(dict.fromkeys(reasons)))


def _input_rule(task: Task, name: str) -> str:
    if task.input is Input.NONE:
        return f"{task.token} takes no {name}; leave it out"
    if task.input is Input.TEXT:
        return f'{task.token} needs a text and takes nothing else: "text": {json.dumps(task.example)}'
    return (
        f'{task.token} needs a region and takes nothing else: "region": {list(PIXELS_EXAMPLE)} in pixels, '
        f'or "region": {json.dumps(LOCATIONS_EXAMPLE)} in thousandths of the picture\'s width and height'
    )
