"""The v2 protocol's BYTES tensors: input tensors to rows of picture, task and text.

Pure functions, shared by HTTP and gRPC; no body format and no model. A packed tensor is the binary tensor
extension's: before each element its length, 4 bytes little-endian. Messages are worded as Triton words them
where a client may branch on them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, NoReturn

from florence.errors import FlorenceError, ProtocolError
from florence.server.long_strings import MOST_QUOTED, LongString
from florence.server.outcomes import name_row
from florence.server.picture import decode_base64, decode_picture
from florence.server.v2.model import INPUTS, OUTPUT, REQUIRED_INPUTS, ServedModel
from florence.types.options import MAX_TEXT_CHARS

DATATYPES: Final = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
    | {"FP16", "BF16", "FP32", "FP64", "BYTES"}
)
_LENGTH: Final = struct.Struct("<I")
_TRITON_OPTIONS: Final = ("triton_enable_empty_final_response", "triton_final_response")

Element = str | LongString | bytes | memoryview
"""One element of a tensor: text from JSON, or bytes."""

Columns = Mapping[str, Sequence[Element]]
"""Each input's elements by its name, one for each row."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as it was sent, its datatype and shape not yet checked. `data`: packed, or its elements."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: memoryview | Sequence[Element]


@dataclass(frozen=True, slots=True)
class Row:
    """One picture with its task. `image`: returns the encoded picture's bytes or raises ImageError; slow, so
    it is called in the model's readers. `text`: None if absent or blank."""

    image: Callable[[], bytes]
    task: str
    text: str | None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A whole request, its tensors checked but no picture read. `id`: "" when none was sent. `parameters`:
    the request's own, unknown ones included. `binary_output`: whether the answer's tensor is to be packed."""

    id: str
    columns: Columns
    parameters: Mapping[str, str | int | float | bool]
    binary_output: bool = False

    @property
    def row_count(self) -> int:
        return len(self.columns[REQUIRED_INPUTS[0]])


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The answer to a request, before it is written. `id`: the request's. `texts`: one for each row. `facts`:
    the answer's parameters. `checkpoint`: the one that answered."""

    served: ServedModel
    id: str
    texts: Sequence[str]
    facts: Mapping[str, int] = field(default_factory=dict)
    checkpoint: str = ""


def read_columns(served: ServedModel, tensors: Iterable[Tensor], request_id: str) -> Columns:
    """The inputs' elements, one for each row. Raises ProtocolError for inputs that don't fit the model or
    each other."""
    columns: dict[str, Sequence[Element]] = {}
    for tensor in tensors:
        if tensor.name in columns:
            refuse(request_id, f"input '{tensor.name}' already exists in request")
        columns[tensor.name] = _elements(served, tensor, request_id)
    missing = [name for name in REQUIRED_INPUTS if name not in columns]
    if missing:
        refuse(
            request_id,
            f"expected number of inputs between {len(REQUIRED_INPUTS)} and {len(INPUTS)} but got "
            f"{len(columns)} inputs for model '{served.name}'. Got input(s) {_names(columns)}, but missing "
            f"required input(s) {_names(missing)}. Please provide all required input(s).",
        )
    rows = len(columns["INPUT_IMAGE"])
    for name, elements in columns.items():
        if len(elements) != rows:
            refuse(request_id, f"input '{name}' batch size does not match other inputs for '{served.name}'")
    return columns


def read_rows(columns: Columns) -> tuple[Row, ...]:
    """One Row for each element of the inputs. Blank text counts as none, since a tensor can only be left out
    for all rows.

    Raises ProtocolError for a malformed text; with several rows the message names the row.
    """
    count = len(columns["INPUT_IMAGE"])
    rows = []
    for index in range(count):
        try:
            task = _text(columns["TASK_PROMPT"][index], "TASK_PROMPT")
            text = _text(columns["TEXT_PROMPT"][index], "TEXT_PROMPT") if "TEXT_PROMPT" in columns else ""
        except FlorenceError as error:
            raise name_row(error, index, count) from None
        image = partial(_picture, columns["INPUT_IMAGE"][index])
        rows.append(Row(image, task, text if text.strip() else None))
    return tuple(rows)


def refuse(request_id: str, message: str) -> NoReturn:
    """Raise a ProtocolError that begins, as Triton's, with the request's id."""
    raise ProtocolError(f"[request id: {request_id or '<id_unknown>'}] {message}")


def wrong_kind(name: str, kind: str) -> ProtocolError:
    """The error, in Triton's words, for a member of a JSON object that is not of its kind."""
    return ProtocolError(f"Unable to parse '{name}': attempt to access JSON non-{kind} as {kind}")


def refuse_shared_memory(parameters: Container[str]) -> None:
    """Raises ProtocolError for a tensor that names a region of shared memory."""
    if "shared_memory_region" in parameters:
        raise ProtocolError(
            "shared memory is not supported: send tensors in the request itself, in 'data' or in binary form"
        )


def check_name(served: ServedModel, what: Literal["input", "output"], name: str) -> None:
    """Raises ProtocolError unless the model has an input or output of that name."""
    if name not in (INPUTS if what == "input" else (OUTPUT,)):
        raise ProtocolError(f"unexpected inference {what} '{name[:60]}' for model '{served.name}'")


def check_text(text: str, what: str) -> str:
    """The text. Raises ProtocolError if it is too long or holds a lone surrogate, which UTF-8 can't
    encode."""
    if len(text) > MAX_TEXT_CHARS:
        raise ProtocolError(f"{what} has {len(text)} characters; at most {MAX_TEXT_CHARS} are allowed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ProtocolError(f"{what} is not valid Unicode: it holds a lone surrogate") from None
    return text


def check_parameters(parameters: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The request's parameters; what they mean is not checked. Raises ProtocolError for those that Triton
    refuses."""
    for name, value in parameters.items():
        if name.startswith("triton_") and name not in _TRITON_OPTIONS:
            raise ProtocolError(
                "parameter keys starting with 'triton_' are reserved for Triton usage; these are allowed: "
                + ", ".join(_TRITON_OPTIONS)
            )
        if name in ("timeout", "priority") and (type(value) is not int or not 0 <= value < 2**64):
            raise wrong_kind(name, "unsigned-integer")
        if not isinstance(value, (str, int, float)):
            raise ProtocolError(
                f"parameter '{name[:60]}' has invalid type. It should be either 'int', 'bool', or 'string'."
            )
    return dict(parameters)


def pack(elements: Iterable[bytes]) -> bytes:
    """The elements as one packed tensor."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack(packed: memoryview, name: str, most: int) -> list[memoryview]:
    """The elements of a packed tensor, as views into it: `most` of them and, if there are more, one more.

    Raises ProtocolError for a length that is cut short or reaches beyond the end.
    """
    elements: list[memoryview] = []
    position = 0
    while position < len(packed) and len(elements) <= most:
        left = len(packed) - position
        if left < _LENGTH.size:
            raise ProtocolError(
                f"incomplete string length indicator for inference input '{name}', expecting "
                f"{_LENGTH.size} bytes but only {left} bytes available"
            )
        (length,) = _LENGTH.unpack_from(packed, position)
        position += _LENGTH.size
        if length > len(packed) - position:
            raise ProtocolError(
                f"incomplete string data for inference input '{name}', expecting string of length {length} "
                f"but only {len(packed) - position} bytes available"
            )
        elements.append(packed[position : position + length])
        position += length
    return elements


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _elements(served: ServedModel, tensor: Tensor, request_id: str) -> Sequence[Element]:
    """The elements of one input, as many as its shape has rows."""
    name = tensor.name
    rows = _row_count(served, tensor.shape, name, request_id)
    if tensor.datatype != "BYTES":
        refuse(
            request_id,
            f"inference input '{name}' data-type is '{tensor.datatype[:60]}', but model '{served.name}' "
            "expects 'BYTES'",
        )
    elements = unpack(tensor.data, name, rows) if isinstance(tensor.data, memoryview) else tensor.data
    if len(elements) > rows:
        refuse(
            request_id,
            f"unexpected number of string elements {len(elements)} for inference input '{name}' "
            f"for model '{served.name}', expecting {rows}",
        )
    if len(elements) < rows:
        refuse(
            request_id,
            f"expected {rows} string elements for inference input '{name}' for model '{served.name}', "
            f"got {len(elements)}",
        )
    return elements


def _row_count(served: ServedModel, shape: Sequence[int], name: str, request_id: str) -> int:
    """How many rows a shape of [rows, 1] has; [1] is one row too."""
    if not shape:
        refuse(
            request_id, f"input '{name}' has no shape but model requires batch dimension for '{served.name}'"
        )
    if list(shape) != [1] and (len(shape) != 2 or shape[1] != 1 or shape[0] < 1):
        got = ",".join(str(size) for size in shape[:8])
        refuse(
            request_id,
            f"unexpected shape for input '{name}' for model '{served.name}'. Expected [-1,1], got "
            f"[{got[:60]}]. NOTE: Setting a non-zero max_batch_size in the model config requires a batch "
            "dimension to be prepended to each input shape.",
        )
    most = served.max_batch_size
    if shape[0] > most:
        refuse(request_id, f"inference request batch-size must be <= {most} for '{served.name}'")
    return shape[0]


def _picture(element: Element) -> bytes:
    """The encoded picture's bytes. Allocates at most the element's size."""
    return decode_base64(element) if isinstance(element, str | LongString) else decode_picture(element)


def _text(element: Element, what: str) -> str:
    if isinstance(element, str):
        return check_text(element, what)
    if len(element) > (MOST_QUOTED if isinstance(element, LongString) else 4 * MAX_TEXT_CHARS):  # as UTF-8
        raise ProtocolError(
            f"{what} has {len(element)} bytes; at most {MAX_TEXT_CHARS} characters are allowed"
        )
    if isinstance(element, LongString):
        return check_text(str(element), what)
    try:
        return check_text(str(element, "utf-8"), what)
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not valid UTF-8") from None
