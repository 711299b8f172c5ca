"""gRPC messages: any bytes are a request or INVALID_ARGUMENT, and costly ones are refused before protobuf
parses them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fake_model import FakeModel
from grpc_calls import JPEG, caption, listening
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from florence.errors import ProtocolError, TooMuchStructure
from florence.server.v2.messages import MOST_BYTES, MOST_FIELDS, parse_message

INFER = service_pb2.ModelInferRequest
JUNK = b"\xff\xfe\xfd" * 20
METHODS = ["ModelInfer", "ServerLive", "ModelMetadata", "ModelStatistics", "RepositoryIndex"]


def field(number: int, content: bytes) -> bytes:
    """A field of bytes or of a message."""
    made = INFER()
    made.raw_input_contents.append(content)
    return bytes([number << 3 | 2]) + made.SerializeToString()[1:]


TOO_MUCH = {
    "inputs": field(5, b"") * (MOST_FIELDS + 1),
    "empty elements": field(5, field(5, field(8, b"") * (MOST_FIELDS + 1))),
    "raw contents": field(7, b"") * (MOST_FIELDS + 1),
    "numbers": b"\x48\x01" * (MOST_FIELDS + 1),
    "a shape": field(5, field(3, b"\x01" * (MOST_BYTES + 1))),
    "packed numbers": field(5, field(5, field(3, b"\x01" * (MOST_BYTES + 1)))),
    "a huge id": field(3, b"x" * (MOST_BYTES + 1)),
    "many parameters": field(4, field(1, b"name")) * (MOST_FIELDS // 2 + 1) * 2,
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_structure_that_no_request_means_is_refused_before_it_is_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message with more structure than a request needs, at any depth, is refused before protobuf parses
    it."""
    read: list[bytes] = []

    class Recorded:
        DESCRIPTOR = INFER.DESCRIPTOR
        FromString = read.append

    with pytest.raises(TooMuchStructure, match="ModelInferRequest is more than a request can hold"):
        parse_message(Recorded, TOO_MUCH[kind])
    assert read == []


def test_elements_of_tensors_may_be_of_any_size() -> None:
    """A tensor's elements, packed or as contents, may have any size."""
    big = bytes(3 * MOST_BYTES)
    for made in (caption(big), service_pb2.ModelInferRequest()):
        if not made.inputs:
            made.inputs.add(name="INPUT_IMAGE").contents.bytes_contents.extend([big, big])
        assert parse_message(INFER, made.SerializeToString()) == made


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_a_message_or_an_error_of_ours(data: bytes, cut: int) -> None:
    """Random bytes, alone and after part of a request, are read exactly if protobuf reads them, else a
    ProtocolError."""
    for sent in (data, caption(JPEG).SerializeToString()[:cut] + data):
        try:
            parsed = parse_message(INFER, sent)
        except ProtocolError:
            with pytest.raises(Exception):  # noqa: B017, PT011  (protobuf's own)
                INFER.FromString(sent)
        else:
            assert parsed == INFER.FromString(sent)


def test_bytes_that_are_no_message_are_invalid_arguments(
    model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Invalid bytes are INVALID_ARGUMENT at every method, also health and reflection, without a traceback."""

    async def scenario() -> None:
        async with listening(model) as (channel, _):
            names = [f"/inference.GRPCInferenceService/{name}" for name in METHODS]
            for name in [*names, "/grpc.health.v1.Health/Check"]:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(name)(JUNK)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            about = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in channel.stream_stream(about)(one(JUNK)):
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def one(data: bytes) -> AsyncIterator[bytes]:
        yield data

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_one_bad_message_ends_no_stream(model: FakeModel) -> None:
    """An invalid message in a stream gets an error in its place; others are answered."""

    async def messages() -> AsyncIterator[bytes]:
        for data in (caption().SerializeToString(), JUNK, TOO_MUCH["inputs"], caption().SerializeToString()):
            yield data

    async def scenario() -> list[str]:
        async with listening(model) as (channel, _):
            call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            read = service_pb2.ModelStreamInferResponse.FromString
            return [read(data).error_message async for data in call(messages())]

    errors = asyncio.run(scenario())
    assert [bool(error) for error in errors] == [False, True, True, False]


def test_health_is_checked_and_watched(model: FakeModel) -> None:
    """A health check answers by service, an unknown one is NOT_FOUND, and a watch reports a change."""

    async def scenario() -> None:
        async with listening(model) as (channel, _):
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "inference.GRPCInferenceService"):
                checked = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert checked.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watched = stub.Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
            model.ready = False
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watched.cancel()

    asyncio.run(scenario())


def test_reflection_lists_the_services(model: FakeModel) -> None:
    """Reflection lists the services and describes their file, for clients without a .proto."""

    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        name = "inference.GRPCInferenceService"
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)

    async def scenario() -> list[Any]:
        async with listening(model) as (channel, _):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            return [each async for each in stub.ServerReflectionInfo(ask())]

    listed, described = asyncio.run(scenario())
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_refused_by_name(model: FakeModel, where: str) -> None:
    """Shared memory is refused by name, as over HTTP."""
    asked = caption()
    holder = asked.inputs[0] if where == "input" else asked.outputs.add(name="PARSED_JSON")
    holder.parameters["shared_memory_region"].string_param = "region"

    async def scenario() -> Any:
        async with listening(model) as (channel, _):
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(asked.SerializeToString())
            return caught.value

    error = asyncio.run(scenario())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "shared memory is not supported" in error.details()
