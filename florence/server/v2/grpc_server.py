"""The v2 protocol over gRPC: the same model and the same counters as over HTTP, in the same process.

Knows methods, statuses, messages (those of Triton's own client), and the server's start and stop. Input
tensors are packed in `raw_input_contents`, or plain in `contents`; output tensors are packed, as Triton sends
them. Not covered: loading models, shared memory, trace and log settings, which are UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from florence.errors import NotFound, ProtocolError, SettingsError
from florence.server.http.bodies import BodyBudget
from florence.server.keys import ApiKeys
from florence.server.replies import GRPC_CODES, failure_of, log_failure, off_loop
from florence.server.tls import Tls
from florence.server.v2.grpc_about import INFERENCE, Health, add_about
from florence.server.v2.grpc_interceptors import interceptors_of
from florence.server.v2.infer_body import answer_tensor
from florence.server.v2.inference import Inference, ModelRepository
from florence.server.v2.messages import parse_message
from florence.server.v2.model import ServedModel, server_metadata
from florence.server.v2.tensors import (
    DATATYPES,
    InferAnswer,
    InferRequest,
    Tensor,
    check_name,
    check_parameters,
    check_text,
    pack,
    read_columns,
    refuse_shared_memory,
)

STREAM_AHEAD: Final = 64  # requests of one stream that are processed at a time
_MAX_DETAILS: Final = 6000  # bytes, as they are sent: all of a call's metadata must fit into 8 KiB
_INFER: Final = service_pb2.ModelInferRequest


class GrpcServer:
    """A gRPC server on one port. `max_message_bytes`: of a request. `keys`: None: no key is needed. `shared`:
    whether other processes listen on the same port, and the kernel balances connections (SO_REUSEPORT).
    `budget`: the memory of request bodies, shared with HTTP. `tls`: None for plain TCP."""

    def __init__(
        self,
        repository: ModelRepository,
        max_message_bytes: int,
        keys: ApiKeys | None = None,
        *,
        shared: bool,
        budget: BodyBudget,
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=interceptors_of(keys),
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(shared)),
            ],
        )
        self._calls = _Calls(repository, budget)
        self._health = Health(lambda: repository.ready)
        add_about(self._server, self._health)
        self._server.add_generic_rpc_handlers(_handlers(self._calls))

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses for 0. Raises SettingsError if it can't be
        opened."""
        name = f"[{host}]" if ":" in host and not host.startswith("[") else host  # IPv6
        try:
            bound = self._bind(f"{name}:{port}")
        except RuntimeError as error:
            raise SettingsError(
                f"can't listen for gRPC on {host}:{port} ({error}); FLORENCE_GRPC_PORT names another port, "
                "or 0 for none, and FLORENCE_GRPC_HOST another address"
            ) from None
        await self._server.start()
        self._health.start()
        return bound

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, self._tls.for_grpc()))

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls; calls in progress may go on for `grace_s` seconds. Streams read no more
        requests, and end once they have answered those that they read."""
        self._calls.end_streams()
        await self._health.stop()
        await self._server.stop(grace_s)


def _handlers(calls: _Calls) -> tuple[Any, ...]:
    """The methods that are implemented; gRPC itself answers UNIMPLEMENTED to others."""
    described = {name: partial(_describe, content, name) for name, content in calls.descriptions().items()}
    unary: dict[str, Callable[[Any], Awaitable[Any]]] = {**described, "ModelInfer": calls.model_infer}
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            partial(_answer, call),
            None,  # the call deserializes its message, and answers a malformed one
            getattr(service_pb2, f"{name}Response").SerializeToString,
        )
        for name, call in unary.items()
    }
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        calls.model_stream_infer, None, service_pb2.ModelStreamInferResponse.SerializeToString
    )
    return (grpc.method_handlers_generic_handler(INFERENCE, methods),)


async def _describe(content: Callable[[Any], Mapping[str, Any]], name: str, data: bytes) -> Any:
    request = parse_message(getattr(service_pb2, f"{name}Request"), data)
    return ParseDict(content(request), getattr(service_pb2, f"{name}Response")())


async def _answer(call: Callable[[Any], Awaitable[Any]], request: Any, context: Any) -> Any:
    """The call's response; an error ends the call with its status and message."""
    try:
        return await call(request)
    except Exception as error:  # noqa: BLE001  (logged and answered)
        log_failure(error)
        failure = failure_of(error)
    trailing = () if failure.retry_after_s is None else (("retry-after", str(failure.retry_after_s)),)
    await context.abort(grpc.StatusCode[GRPC_CODES[failure.status]], _details(failure.message), trailing)


def _details(text: str) -> str:
    """The text, cut to what a status can hold: UTF-8, percent-encoded, at most 12 bytes a character."""
    text = _scrub(text[:_MAX_DETAILS])
    return text if len(quote(text)) <= _MAX_DETAILS else text[: _MAX_DETAILS // 12]


def _scrub(text: str) -> str:
    """The text without lone surrogates, which UTF-8 can't encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Calls:
    """The service's methods, from request to response."""

    def __init__(self, repository: ModelRepository, budget: BodyBudget) -> None:
        self._repository, self._budget = repository, budget
        self._readers: set[asyncio.Task[None]] = set()  # of the open streams

    def end_streams(self) -> None:
        """Read no more requests from any stream."""
        for reader in self._readers:
            reader.cancel()

    def descriptions(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """The methods that describe models and server: from a request to its response's fields."""
        models = self._repository

        def inference(request: Any) -> Inference:
            return models.find(request.name, request.version)

        def once_loaded(describe: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], Mapping[str, Any]]:
            def checked(request: Any) -> Mapping[str, Any]:
                models.check_loaded()
                return describe(request)

            return checked

        described: dict[str, Callable[[Any], Mapping[str, Any]]] = {
            "ServerMetadata": lambda _: server_metadata(),
            "ModelMetadata": lambda request: inference(request).served.metadata(),
            "ModelConfig": lambda request: {"config": inference(request).config()},
            "ModelStatistics": lambda request: models.statistics(request.name, request.version),
            "RepositoryIndex": lambda request: {"models": models.index(only_ready=request.ready)},
        }
        return {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": models.ready},
            "ModelReady": lambda request: {"ready": self._model_ready(request)},
            **{name: once_loaded(describe) for name, describe in described.items()},
        }

    def _model_ready(self, request: Any) -> bool:
        """As in Triton, an unknown model is not ready, rather than an error."""
        try:
            return self._repository.find(request.name, request.version).ready
        except NotFound:
            return False

    async def model_infer(self, data: bytes) -> Any:
        """The ModelInferResponse to a ModelInferRequest."""
        async with self._budget.holding(len(data)):
            return await self._infer(await off_loop(len(data), parse_message, _INFER, data))

    async def _infer(self, request: Any) -> Any:
        inference = self._repository.find(request.model_name, request.model_version)
        inference.ready_model()
        size = request.ByteSize()
        infer = await off_loop(size, read_infer_request, inference.served, request)
        return await inference.answer(infer, infer_response)

    async def model_stream_infer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests, which are processed concurrently."""
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_AHEAD)

        async def read() -> None:
            try:
                while True:
                    await room.acquire()  # before a request is read: one that was read is answered
                    request = await anext(requests)
                    answers.put_nowait(asyncio.ensure_future(self._stream_answer(request)))
            except StopAsyncIteration:
                return
            finally:
                answers.put_nowait(None)

        reader = asyncio.ensure_future(read())
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        task = None
        try:
            while (task := await answers.get()) is not None:
                yield await task
                room.release()
            await asyncio.wait([reader])
            if not reader.cancelled():
                reader.result()
        finally:
            reader.cancel()
            while task is not None:
                task.cancel()
                task = None if answers.empty() else answers.get_nowait()

    async def _stream_answer(self, data: bytes) -> Any:
        request = _INFER()
        try:
            async with self._budget.holding(len(data)):
                request = await off_loop(len(data), parse_message, _INFER, data)
                response = await self._infer(request)
            response.parameters["triton_final_response"].bool_param = True
            return service_pb2.ModelStreamInferResponse(infer_response=response)
        except Exception as error:  # noqa: BLE001  (logged and answered)
            log_failure(error)
            known = self._repository.get(request.model_name)
            served = known.served if known else ServedModel(request.model_name, request.model_version)
            return service_pb2.ModelStreamInferResponse(  # the stream stays open
                error_message=_scrub(failure_of(error).message), infer_response=infer_head(served, request.id)
            )


def read_infer_request(served: ServedModel, message: Any) -> InferRequest:
    """The request in a ModelInferRequest. Its tensors are views into the message. Raises ProtocolError."""
    check_text(message.id, "id")
    parameters = check_parameters({name: _value(message.parameters[name]) for name in message.parameters})
    columns = read_columns(served, _tensors(served, message), message.id)
    for output in message.outputs:
        check_name(served, "output", output.name)
        refuse_shared_memory(output.parameters)
    return InferRequest(message.id, columns, parameters, binary_output=True)


def infer_response(answer: InferAnswer) -> Any:
    """The ModelInferResponse; one element for each row."""
    response = infer_head(answer.served, answer.id)
    for name, value in answer.facts.items():
        response.parameters[name].int64_param = value
    response.outputs.add(**answer_tensor(len(answer.texts)))
    response.raw_output_contents.append(pack(text.encode("ascii") for text in answer.texts))
    return response


def infer_head(served: ServedModel, request_id: str) -> Any:
    """A ModelInferResponse without outputs."""
    return service_pb2.ModelInferResponse(model_name=served.name, model_version=served.version, id=request_id)


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _tensors(served: ServedModel, message: Any) -> Iterator[Tensor]:
    """The input tensors; where there are raw contents, each input takes the next of them."""
    raw = message.raw_input_contents
    for index, tensor in enumerate(message.inputs):
        name = tensor.name
        check_name(served, "input", name)
        refuse_shared_memory(tensor.parameters)
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
