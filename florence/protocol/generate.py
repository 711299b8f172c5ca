"""Bodies of Triton's generate extension: one key for each input in, one key for each output back.

Pure functions on bytes; the request is the same as any other once it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from florence.errors import ProtocolError
from florence.protocol.infer_body import answer_head, flatten, member, parse_json
from florence.protocol.tensors import InferRequest, Tensor, check_parameters, check_text, read_columns
from florence.protocol.v2_model import INPUTS, OUTPUT

_NOT_PARAMETERS = frozenset({"id", "parameters", *INPUTS})


def parse_generate_request(body: bytes) -> InferRequest:
    """The request in a body such as {"INPUT_IMAGE": "<base64>", "TASK_PROMPT": "<CAPTION>"}; a list of texts
    makes as many rows. Keys that name no input are parameters. Raises ProtocolError."""
    content = parse_json(body)
    if not isinstance(content, dict):
        raise ProtocolError("failed to parse the request JSON buffer: the document is not an object at 0")
    request_id = check_text(member(content, "id", str), "id") if "id" in content else ""
    parameters = dict(member(content, "parameters", dict)) if "parameters" in content else {}
    parameters |= {name: value for name, value in content.items() if name not in _NOT_PARAMETERS}
    columns = read_columns(_tensors(content), request_id)
    return InferRequest(request_id, columns, check_parameters(parameters))


def build_generate_answer(request_id: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer's JSON object: a text for one row, a list of texts for more."""
    texts = [json.dumps(row) for row in answers]
    return {**answer_head(request_id), OUTPUT: texts[0] if len(texts) == 1 else texts}


def build_event(content: Mapping[str, Any]) -> bytes:
    """The answer as one server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"


def _tensors(content: Mapping[str, Any]) -> Iterator[Tensor]:
    for name in INPUTS:
        if name in content:
            value = content[name]
            texts = flatten(value if isinstance(value, list) else [value])
            yield Tensor(name, "BYTES", [len(texts), 1], texts)
