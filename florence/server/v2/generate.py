"""Bodies of Triton's generate extension, which have a key for each input and output.

Pure functions on bytes. A request becomes an `InferRequest`, as that of `infer` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from florence.errors import OptionError, ProtocolError
from florence.server.long_strings import parse_json
from florence.server.v2.infer_body import answer_head, flatten, optional_member
from florence.server.v2.inference import generation_options
from florence.server.v2.model import INPUTS, OUTPUT, ServedModel
from florence.server.v2.prompts import AcceptedPrompts
from florence.server.v2.tensors import (
    InferRequest,
    Tensor,
    check_parameters,
    check_text,
    read_columns,
    read_rows,
)

TEXT_KEY: Final = "text_output"
"""Where Triton's text backends put the text of an event; our output is there in the last event only."""

_NOT_PARAMETERS = frozenset({"id", "parameters", *INPUTS})


def parse_generate_request(served: ServedModel, body: bytes) -> InferRequest:
    """The request in a body such as {"INPUT_IMAGE": "<base64>", "TASK_PROMPT": "<CAPTION>"}; a list of texts
    makes as many rows. Keys that name no input are parameters. Raises ProtocolError."""
    content = parse_json(body)
    if not isinstance(content, dict):
        raise ProtocolError("failed to parse the request JSON buffer: the document is not an object at 0")
    request_id = check_text(optional_member(content, "id", str), "id")
    plain = {name: value for name, value in content.items() if name not in _NOT_PARAMETERS}
    parameters = {**optional_member(content, "parameters", dict), **plain}
    columns = read_columns(served, _tensors(content), request_id)
    return InferRequest(request_id, columns, check_parameters(parameters))


def build_generate_answer(
    served: ServedModel, request_id: str, texts: Sequence[str], seed: int | None = None
) -> dict[str, Any]:
    """The answer's JSON object: a text for one row, a list of texts for more."""
    return {**answer_head(served, request_id, seed), OUTPUT: texts[0] if len(texts) == 1 else list(texts)}


def is_token_stream(infer: InferRequest, prompts: AcceptedPrompts) -> bool:
    """Whether a stream of this request gives its text token by token: one row, one beam, a text to answer.

    One beam has to be asked for, or sampling, since the checkpoint's own setting is more. Raises OptionError
    where several are asked for, TaskError for an unknown task.
    """
    options = generation_options(infer.parameters)
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
    return build_event({**answer_head(served, request_id), TEXT_KEY: text})


def build_event(content: Mapping[str, Any]) -> bytes:
    """The answer as one server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"


def _tensors(content: Mapping[str, Any]) -> Iterator[Tensor]:
    for name in INPUTS:
        if name in content:
            value = content[name]
            texts = flatten(value if isinstance(value, list) else [value])
            yield Tensor(name, "BYTES", [len(texts), 1], texts)
