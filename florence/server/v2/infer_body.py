"""Bodies of v2 inference over HTTP: of `infer`, JSON that packed tensors may follow, and of Triton's generate
extension, which have a key for each input and output.

Pure functions on bytes. JSON that Triton refuses with status 500 is refused with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from florence.errors import MalformedJson, OptionError, ProtocolError
from florence.server.events import build_event
from florence.server.long_strings import LONG, Document, LongString
from florence.server.replies import json_bytes
from florence.server.v2.inference import generation_options
from florence.server.v2.model import INPUTS, OUTPUT, ServedModel
from florence.server.v2.prompts import AcceptedPrompts
from florence.server.v2.tensors import (
    DATATYPES,
    Element,
    InferAnswer,
    InferRequest,
    Tensor,
    check_name,
    check_parameters,
    check_text,
    pack,
    read_columns,
    read_rows,
    refuse,
    refuse_shared_memory,
    wrong_kind,
)

TEXT_KEY: Final = "text_output"
"""The key of an event's text in Triton's text backends; `OUTPUT` is in the last event only."""

_END: Final = object()
_KINDS: Mapping[type, str] = MappingProxyType({dict: "object", list: "array", str: "string", bool: "boolean"})
_ONE_OF: Final = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
_NOT_PARAMETERS = frozenset({"id", "parameters", *INPUTS})
_HEADER_LENGTH: Final = re.compile(r"-?\d{1,18}", re.ASCII)


def parse_infer_request(
    served: ServedModel, body: bytes | bytearray, header_length: str | None
) -> InferRequest:
    """The request in a body: JSON, and packed tensors behind it. Its pictures are views into the body.

    `header_length`: bytes of the JSON, as the header Inference-Header-Content-Length says; None: all. Takes
    memory within a small multiple of the body's size. Raises ProtocolError.
    """
    document, tail = _split(served, body, header_length)
    content, request_id = _object_and_id(document)
    parameters = check_parameters(optional_member(content, "parameters", dict))
    columns = read_columns(served, _tensors(served, member(content, "inputs", list), tail), request_id)
    return InferRequest(request_id, columns, parameters, _wants_binary(served, content, parameters))


def answer_tensor(rows: int) -> dict[str, Any]:
    """Name, type and shape of the answer's one output."""
    return {"name": OUTPUT, "datatype": "BYTES", "shape": [rows, 1]}


def build_infer_answer(answer: InferAnswer) -> dict[str, Any]:
    """The answer's JSON object, with one string for each row."""
    output = {**answer_tensor(len(answer.texts)), "data": list(answer.texts)}
    return {**_head(answer), "outputs": [output]}


def build_binary_answer(answer: InferAnswer) -> tuple[bytes, int]:
    """The answer with a packed tensor, and how many bytes of it are its JSON."""
    packed = pack(text.encode("ascii") for text in answer.texts)
    output = {**answer_tensor(len(answer.texts)), "parameters": {"binary_data_size": len(packed)}}
    head = json_bytes({**_head(answer), "outputs": [output]})
    return head + packed, len(head)


def parse_generate_request(served: ServedModel, body: bytes | bytearray) -> InferRequest:
    """The request in a body such as {"INPUT_IMAGE": "<base64>", "TASK_PROMPT": "<CAPTION>"}; a list of texts
    makes as many rows. Keys that name no input are parameters. Raises ProtocolError."""
    content, request_id = _object_and_id(Document(body))
    plain = {name: value for name, value in content.items() if name not in _NOT_PARAMETERS}
    parameters = {**optional_member(content, "parameters", dict), **plain}
    columns = read_columns(served, _texts(content), request_id)
    return InferRequest(request_id, columns, check_parameters(parameters))


def build_generate_answer(answer: InferAnswer) -> dict[str, Any]:
    """The answer's JSON object: a text for one row, a list of texts for more."""
    texts = answer.texts
    return {**_head(answer), OUTPUT: texts[0] if len(texts) == 1 else list(texts)}


def is_token_stream(infer: InferRequest, prompts: AcceptedPrompts) -> bool:
    """Whether a stream of this request gives its text token by token: one row, one beam, a text to answer.

    The request must set one beam, or sampling, since the checkpoint's own setting is several beams. Answers
    of tiles are merged at the end, and can't be streamed. Raises OptionError where several beams are asked
    for, TaskError for an unknown task.
    """
    options = generation_options(infer.parameters)
    if options.tiled:
        return False
    beams = 1 if options.do_sample else options.num_beams
    if beams is None:
        return False
    if beams > 1:
        raise OptionError(
            f"a stream of tokens needs num_beams=1, got {beams}: beams compete until the last token, so no "
            "part of the answer is final before all of it is; ask generate, or leave num_beams out to get "
            "the whole answer as one event"
        )
    if infer.row_count != 1:
        return False
    (row,) = read_rows(infer.columns)
    task, _ = prompts.find(row.task, row.text)
    return task.kind.is_text


def build_text_event(served: ServedModel, request_id: str, text: str) -> bytes:
    """A piece of the answer's text, as one server-sent event."""
    return build_event(json_bytes({**_head(InferAnswer(served, request_id, ())), TEXT_KEY: text}))


def _head(answer: InferAnswer) -> dict[str, Any]:
    """The request's id, if it was sent, the model's name and version, and the parameters, if any."""
    named = {"id": answer.id} if answer.id else {}
    told = {"parameters": answer.facts} if answer.facts else {}
    return {**named, "model_name": answer.served.name, "model_version": answer.served.version, **told}


def _object_and_id(document: Document) -> tuple[dict[str, Any], str]:
    """The JSON object of a request, and the request's id; "" without one."""
    content = document.parse()
    if not isinstance(content, dict):
        raise MalformedJson("the document is not an object", 0)
    return content, check_text(optional_member(content, "id", str), "id")


def _split(
    served: ServedModel, body: bytes | bytearray, header_length: str | None
) -> tuple[Document, memoryview]:
    """The body's JSON, not parsed, and the packed tensors behind it. Raises ProtocolError for a wrong
    length."""
    number = None
    if header_length is not None:
        number = int(header_length) if _HEADER_LENGTH.fullmatch(header_length) else 0
    if not body or number == 0:
        refuse(
            "",
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(INPUTS)} inputs in "
            f"'{served.name}' model configuration",
        )
    if number is None or number == len(body):
        return Document(body), memoryview(b"")
    if not 0 < number < len(body):
        raise ProtocolError(
            f"inference header size should be in range (0, {len(body)}), got: {header_length}"
        )
    return Document(body, number), memoryview(body)[number:]


def member(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """The member of that name and JSON kind. Raises ProtocolError where there is none."""
    if name not in holder:
        raise ProtocolError(
            f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"
        )
    value = holder[name]
    if isinstance(value, LongString) and kind is str:
        raise ProtocolError(f"'{name}' has {len(value)} bytes; at most {LONG} are allowed")
    if not isinstance(value, kind):
        raise wrong_kind(name, _KINDS[kind])
    return value


def optional_member(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """As `member`; an empty value of the kind where there is no such member."""
    return member(holder, name, kind) if name in holder else kind()


def _tensors(served: ServedModel, inputs: Sequence[Any], tail: memoryview) -> Iterator[Tensor]:
    """The input tensors; packed ones take their bytes from the tail, one after the other."""
    for tensor in inputs:
        if not isinstance(tensor, dict):
            raise wrong_kind("inputs", "object")
        name = member(tensor, "name", str)
        check_name(served, "input", name)
        datatype, shape = member(tensor, "datatype", str), member(tensor, "shape", list)
        if not all(_is_unsigned(size) for size in shape):
            raise wrong_kind("shape", "unsigned-integer")
        if datatype not in DATATYPES:
            raise ProtocolError(f"invalid datatype for input {name}")
        size = _binary_size(tensor)
        if size is None:
            data = member(tensor, "data", list)
            yield Tensor(name, datatype, shape, flatten(data) if datatype == "BYTES" else ())
            continue
        if size > len(tail):
            raise ProtocolError(
                f"unexpected size for input '{name}', expecting {size - len(tail)} additional bytes for "
                f"model '{served.name}'"
            )
        yield Tensor(name, datatype, shape, tail[:size])
        tail = tail[size:]
    if len(tail):
        raise ProtocolError(f"unexpected additional input data for model '{served.name}'")


def _binary_size(tensor: Mapping[str, Any]) -> int | None:
    """How many bytes of the tail are this tensor's; None when its strings are in `data`."""
    parameters = tensor.get("parameters")
    named = parameters if isinstance(parameters, dict) else {}
    refuse_shared_memory(named)
    size = named.get("binary_data_size")
    if "data" in tensor and size is not None:
        raise ProtocolError(_ONE_OF + "set 'data' 'binary_data_size'")
    if "data" not in tensor and size is None:
        raise ProtocolError(_ONE_OF + "no field is set")
    if size is not None and not _is_unsigned(size):
        raise wrong_kind("binary_data_size", "unsigned-integer")
    return size


def _is_unsigned(value: object) -> bool:
    return type(value) is int and value >= 0


def flatten(data: Sequence[Any]) -> list[Element]:
    """All strings of a list, however nested: Triton counts strings and ignores their nesting."""
    strings: list[Element] = []
    open_lists = [iter(data)]
    while open_lists:
        element = next(open_lists[-1], _END)
        if isinstance(element, (str, LongString)):
            strings.append(element)
        elif isinstance(element, list):
            open_lists.append(iter(element))
        elif element is _END:
            open_lists.pop()
        else:
            raise ProtocolError(
                "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
            )
    return strings


def _wants_binary(served: ServedModel, content: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether the output is to be packed: by its own parameter where `outputs` names it, else by the
    request's."""
    outputs = optional_member(content, "outputs", list)
    wanted = False
    for output in outputs:
        if not isinstance(output, dict):
            raise wrong_kind("outputs", "object")
        check_name(served, "output", member(output, "name", str))
        named = optional_member(output, "parameters", dict)
        refuse_shared_memory(named)
        if "binary_data" in named:
            wanted = member(named, "binary_data", bool)
    if "binary_data_output" in parameters:
        everywhere: bool = member(parameters, "binary_data_output", bool)
        return wanted if outputs else everywhere
    return wanted


def _texts(content: Mapping[str, Any]) -> Iterator[Tensor]:
    for name in INPUTS:
        if name in content:
            value = content[name]
            texts = flatten(value if isinstance(value, list) else [value])
            yield Tensor(name, "BYTES", [len(texts), 1], texts)
