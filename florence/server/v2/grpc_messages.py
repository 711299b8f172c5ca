"""The protobuf messages of inference in the v2 protocol: requests to `InferRequest`, answers to messages.

Pure functions on the messages of Triton's own client. Input tensors are packed in `raw_input_contents`, or
plain in `contents`; output tensors are packed, as Triton sends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from florence.errors import ProtocolError
from florence.server.v2.infer_body import answer_tensor
from florence.server.v2.model import ServedModel
from florence.server.v2.tensors import (
    DATATYPES,
    InferRequest,
    Tensor,
    check_input,
    check_output,
    check_parameters,
    check_text,
    pack,
    read_columns,
)


def read_infer_request(served: ServedModel, message: Any) -> InferRequest:
    """The request in a ModelInferRequest. Its tensors are views into the message. Raises ProtocolError."""
    check_text(message.id, "id")
    parameters = check_parameters({name: _value(message.parameters[name]) for name in message.parameters})
    columns = read_columns(served, _tensors(served, message), message.id)
    for output in message.outputs:
        check_output(served, output.name)
    return InferRequest(message.id, columns, parameters, binary_output=True)


def infer_response(
    served: ServedModel, request_id: str, texts: Sequence[str], seed: int | None = None
) -> Any:
    """The ModelInferResponse; one element for each row. seed: of their draws, where they sampled."""
    response = infer_head(served, request_id)
    if seed is not None:
        response.parameters["seed"].int64_param = seed
    response.outputs.add(**answer_tensor(len(texts)))
    response.raw_output_contents.append(pack(text.encode("ascii") for text in texts))
    return response


def infer_head(served: ServedModel, request_id: str) -> Any:
    """A ModelInferResponse without outputs."""
    return service_pb2.ModelInferResponse(model_name=served.name, model_version=served.version, id=request_id)


def stream_response(response: Any) -> Any:
    """The response as the only answer to one of a stream's requests."""
    response.parameters["triton_final_response"].bool_param = True
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def stream_error(served: ServedModel, request_id: str, text: str) -> Any:
    """An error as the answer to one of a stream's requests; the stream stays open."""
    head = infer_head(served, request_id)
    return service_pb2.ModelStreamInferResponse(error_message=text, infer_response=head)


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _tensors(served: ServedModel, message: Any) -> Iterator[Tensor]:
    """The input tensors; where there are raw contents, each input takes the next of them."""
    raw = message.raw_input_contents
    for index, tensor in enumerate(message.inputs):
        name = tensor.name
        check_input(served, name)
        datatype = tensor.datatype if tensor.datatype in DATATYPES else "<invalid>"
        if not raw:
            yield Tensor(name, datatype, tensor.shape, tensor.contents.bytes_contents)
            continue
        if tensor.HasField("contents"):
            raise ProtocolError(
                f"contents field must not be specified when using raw_input_contents for '{name}' for model "
                f"'{served.name}'"
            )
        if index >= len(raw):
            raise ProtocolError(
                f"unable to find data for input tensor '{name}' for model '{served.name}' in request."
            )
        yield Tensor(name, datatype, tensor.shape, memoryview(raw[index]))
