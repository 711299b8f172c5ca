"""A request's fields by name, from a multipart form, or from the query of a body that is a picture alone.

Knows HTTP; of the fields only the names of the picture and of texts.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from florence.errors import ProtocolError, RequestError, TooMuchStructure
from florence.images.headers import FIRST_BYTES, is_picture
from florence.server.http.bodies import read_body
from florence.server.long_strings import MAX_QUOTED, Document, short_strings
from florence.server.picture import PIECE
from florence.server.replies import off_loop
from florence.types.options import TEXT_FIELDS

MULTIPART: Final = "multipart/form-data"
PICTURE: Final = "image/*"
"""The type of a body that is a picture alone."""
_MAX_PARTS: Final = 32
_MAX_TEXT_PART: Final = 32 * 2**20  # bytes of a part that is not a file: it is decoded in one go
_BENTOML_CLIENT: Final = "BentoML HTTP Client/"  # writes all values of a form in JSON


async def read_form(request: Request) -> dict[str, Any]:
    """The fields of a multipart body, in memory; the service's limit on bodies bounds it. Raises
    RequestError."""
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=_MAX_PARTS,
        max_fields=_MAX_PARTS,
        max_part_size=_MAX_TEXT_PART,
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


async def read_alone(request: Request) -> dict[str, Any]:
    """The fields of a body that is nothing but the picture; the others stand in the query, as in a form."""
    fields: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in fields or name == "image":
            what = "the picture is the body" if name == "image" else "send it once"
            raise RequestError(f"{name[:60]} is sent more than once: {what}")
        fields[name] = text if name in TEXT_FIELDS else _read_value(text)
    return {"image": await read_body(request.receive), **fields}


def is_alone(content_type: str) -> bool:
    """Whether a body of that type is a picture alone."""
    return content_type.startswith(("image/", "application/octet-stream"))


async def _read_part(form: FormData, name: str, *, in_json: bool) -> Any:
    """One part's value: a file's bytes, or text. Numbers and lists are JSON; a text is plain, unless
    `in_json`."""
    parts = form.getlist(name)
    if len(parts) > 1:
        raise RequestError(f"{name[:60]} is sent {len(parts)} times; send it once")
    part = parts[0]
    size = (part.size or 0) if isinstance(part, UploadFile) else len(part)
    if (
        isinstance(part, UploadFile)
        and name not in ("image", *TEXT_FIELDS)
        and is_picture(await part.read(FIRST_BYTES))
    ):
        raise RequestError(f"{name[:60]} holds a picture; the field for the picture is image")
    if name != "image" and size > MAX_QUOTED:
        raise RequestError(f"{name[:60]} has {size} bytes; up to {MAX_QUOTED} are allowed")
    if isinstance(part, UploadFile):
        await part.seek(0)
        data = await off_loop(size, _read_upload, part.file)
        if name == "image":
            return data
        part = data.decode("utf-8", "replace")
    if name == "image" or (name in TEXT_FIELDS and not in_json):
        return part
    return await off_loop(size, _read_value, part)


def _read_upload(file: BinaryIO) -> bytes | bytearray:
    """A file's bytes; a large one in pieces, none of which holds the interpreter's lock for long."""
    data = file.read(PIECE)
    if len(data) < PIECE:
        return data
    whole = bytearray(data)
    while data := file.read(PIECE):
        whole += data
    return whole


def _read_value(text: str) -> Any:
    """The text's value as JSON; the text itself where it is not JSON. Raises RequestError for too much
    structure."""
    try:
        return short_strings(Document(text.encode("utf-8", "surrogatepass")).parse())
    except TooMuchStructure as error:
        raise RequestError(str(error)) from None
    except ProtocolError:
        return text
