"""The gRPC server with a fake model: methods, statuses, streams, sizes, and the counters of HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from fake_model import FakeModel
from grpc_calls import caption, listening, message
from tritonclient.grpc import service_pb2, service_pb2_grpc
from v2 import failures, pending, picture, roomy
from waiting import PATIENCE_S, until

from florence.errors import DeadlineExceeded, EngineError, Overloaded, SettingsError
from florence.server.v2.grpc_server import STREAM_AHEAD, GrpcServer
from florence.server.v2.inference import Inference, ModelRepository

Check = Callable[[Any, Inference], Awaitable[None]]


def run(model: FakeModel, check: Check, max_bytes: int = 10_000_000) -> None:
    """Run the check with the stub of a listening server."""

    async def checked() -> None:
        async with listening(model, max_bytes) as (channel, inference):
            await check(service_pb2_grpc.GRPCInferenceServiceStub(channel), inference)

    asyncio.run(checked())


async def status(call: Awaitable[Any]) -> tuple[str, str]:
    """The status code and message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, str(caught.value.details())


def test_health_and_metadata_are_those_of_http(model: FakeModel) -> None:
    """gRPC gives HTTP's health, metadata, configuration with an optional TEXT_PROMPT, and index."""

    async def check(stub: Any, inference: Inference) -> None:
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
        assert (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name="florence2", version="1"))).ready
        assert "statistics" in (await stub.ServerMetadata(service_pb2.ServerMetadataRequest())).extensions
        metadata = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="florence2"))
        assert [list(tensor.shape) for tensor in metadata.inputs] == [[-1, 1]] * 3
        config = (await stub.ModelConfig(service_pb2.ModelConfigRequest(name="florence2"))).config
        assert [tensor.optional for tensor in config.input] == [False, False, True]
        assert (config.max_batch_size, config.output[0].data_type) == (36, 13)
        index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
        assert [(entry.name, entry.state) for entry in index.models] == [("florence2", "READY")]
        model.ready = False
        assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        assert await status(stub.ModelInfer(caption())) == ("UNAVAILABLE", "the model is not ready")

    run(model, check)


def test_an_unknown_model_is_not_ready_and_no_error(model: FakeModel) -> None:
    """An unknown model is not ready, which is no error; elsewhere it is NOT_FOUND, and for statistics
    INVALID_ARGUMENT."""

    async def check(stub: Any, inference: Inference) -> None:
        assert not (await stub.ModelReady(service_pb2.ModelReadyRequest(name="nope"))).ready
        assert not (
            await stub.ModelReady(service_pb2.ModelReadyRequest(name="florence2", version="97"))
        ).ready
        unknown = "Request for unknown model: 'nope' is not found"
        metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="nope"))
        assert await status(metadata) == ("NOT_FOUND", unknown)
        infer = caption()
        infer.model_name = "nope"
        assert await status(stub.ModelInfer(infer)) == ("NOT_FOUND", unknown)
        statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="nope"))
        assert await status(statistics) == ("INVALID_ARGUMENT", "requested model 'nope' is not available")
        code, _ = await status(stub.ModelInfer(caption(model_version="abc")))
        assert code == "INVALID_ARGUMENT"
        code, _ = await status(stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest()))
        assert code == "UNIMPLEMENTED"

    run(model, check)


def test_an_answer_and_its_statistics(model: FakeModel) -> None:
    """A picture's own bytes are answered, and HTTP and gRPC share their counters."""

    async def check(stub: Any, inference: Inference) -> None:
        response = await stub.ModelInfer(caption(id="g-7"))
        assert (response.id, response.raw_output_contents[0][4:]) == ("g-7", b'{"<CAPTION>": "a fake"}')
        assert model.calls[0].image == picture()
        (entry,) = (await stub.ModelStatistics(service_pb2.ModelStatisticsRequest())).model_stats
        assert (entry.inference_count, entry.inference_stats.compute_infer.count) == (1, 1)
        assert inference.statistics.as_dict()["execution_count"] == 1

    run(model, check)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("the queue is full", retry_after_s=2.2), ("UNAVAILABLE", "the queue is full")),
        (DeadlineExceeded("too late"), ("DEADLINE_EXCEEDED", "too late")),
        (EngineError("the device failed"), ("INTERNAL", "the device failed")),
        (ZeroDivisionError("secret"), ("INTERNAL", "internal error: the server's log says more")),
    ],
)
def test_failures_have_their_status(model: FakeModel, error: Exception, expected: tuple[str, str]) -> None:
    """Failures have the status of HTTP's, and a full queue has retry-after."""
    model.error = error

    async def check(stub: Any, inference: Inference) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(caption())
        assert (caught.value.code().name, caught.value.details()) == expected
        retry = dict(caught.value.trailing_metadata()).get("retry-after")
        assert retry == ("3" if expected[0] == "UNAVAILABLE" else None)

    run(model, check)


@pytest.mark.parametrize("character", ["x", "\u732b", "\U0001f600"])
def test_a_very_long_message_still_arrives(model: FakeModel, character: str) -> None:
    """An error shortens an id of 16,000 characters, since all metadata of a call must fit into 8 KiB."""

    async def check(stub: Any, inference: Inference) -> None:
        infer = message({"INPUT_IMAGE": [picture()]}, id=character * 16_000)
        code, details = await status(stub.ModelInfer(infer))
        assert code == "INVALID_ARGUMENT"
        assert details.startswith("[request id: " + 400 * character)

    run(model, check)


def test_a_stream_answers_in_order_and_outlives_errors(model: FakeModel) -> None:
    """A stream answers more requests than it reads ahead in order; each answer is final, and an error has
    its request's id."""
    count = 2 * STREAM_AHEAD + 3

    async def check(stub: Any, inference: Inference) -> None:
        async def requests() -> AsyncIterator[Any]:
            for index in range(count):
                yield caption(b"%%%" if index % 7 == 3 else None, id=f"s{index}")

        answers = [answer async for answer in stub.ModelStreamInfer(requests())]
        assert [answer.infer_response.id for answer in answers] == [f"s{index}" for index in range(count)]
        for index, answer in enumerate(answers):
            final = answer.infer_response.parameters
            if index % 7 == 3:
                assert "not valid base64" in answer.error_message
            else:
                assert final["triton_final_response"].bool_param
                assert not answer.error_message

    run(model, check)


def test_a_stream_that_is_left_cancels_its_requests(model: FakeModel) -> None:
    """Cancelling a stream cancels its requests."""
    model.held = True

    async def check(stub: Any, inference: Inference) -> None:
        call = stub.ModelStreamInfer()
        for _ in range(3):
            await call.write(caption())
        await until(lambda: pending(inference) == 3)
        call.cancel()
        await until(lambda: not pending(inference))
        assert failures(inference)["CANCELED"] == 3

    run(model, check)


@pytest.mark.parametrize("ending", ["deadline", "cancel"])
def test_a_call_that_its_client_ends_frees_its_place(model: FakeModel, ending: str) -> None:
    """A call that ends by gRPC's deadline or a cancel is stopped and counted as CANCELED."""
    model.held = True

    async def check(stub: Any, inference: Inference) -> None:
        for timeout_s in (0.3, 1.0, 4.0, 16.0, 64.0) if ending == "deadline" else (None,):
            call = stub.ModelInfer(caption(), timeout=timeout_s)
            if ending == "cancel":
                await until(lambda: pending(inference))
                call.cancel()
            name = {"deadline": "DEADLINE_EXCEEDED", "cancel": "CANCELLED"}[ending]
            assert (await call.code()).name == name
            if model.calls:  # else the machine was too busy for this deadline
                break
        await until(lambda: not pending(inference) and model.calls[0].future.cancelled())
        assert set(failures(inference)) == {"CANCELED"}

    run(model, check)


def test_a_requests_own_timeout_is_its_deadline(model: FakeModel) -> None:
    """A request's timeout, in microseconds as tritonclient sends it, is its deadline."""
    model.held = True

    async def check(stub: Any, inference: Inference) -> None:
        infer = caption()
        infer.parameters["timeout"].int64_param = 50_000
        assert await status(stub.ModelInfer(infer)) == (
            "DEADLINE_EXCEEDED",
            "the request was not finished within 0.05 s",
        )

    run(model, check)


def test_a_stop_answers_what_a_stream_has_sent_and_ends_it(model: FakeModel) -> None:
    """A stop answers a stream's request and ends the stream; an idle stream does not delay it."""

    async def checked() -> None:
        inference = Inference(PATIENCE_S)
        inference.model = model
        server = GrpcServer(ModelRepository([inference]), 10_000_000, shared=False, budget=roomy())
        port = await server.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
            await idle.write(caption(id="i"))
            assert (await idle.read()).infer_response.id == "i"
            model.held = True
            await busy.write(caption(id="b"))
            await until(lambda: pending(inference))
            stopping = asyncio.ensure_future(server.stop(2 * PATIENCE_S))
            await asyncio.sleep(0)
            model.release.set()
            await asyncio.wait_for(stopping, PATIENCE_S)
            assert (await busy.read()).infer_response.id == "b"
            assert await busy.read() is await idle.read() is grpc.aio.EOF
            assert await busy.code() == await idle.code() == grpc.StatusCode.OK

    asyncio.run(checked())


def test_large_pictures_pass_and_larger_than_allowed_do_not(model: FakeModel) -> None:
    """The service's limit on a message replaces gRPC's 4 MB."""
    large = picture((64, 64)) + bytes(6_000_000)

    async def check(stub: Any, inference: Inference) -> None:
        assert (await stub.ModelInfer(caption(large))).outputs
        code, _ = await status(stub.ModelInfer(caption(large + bytes(2_000_000))))
        assert code == "RESOURCE_EXHAUSTED"

    run(model, check, max_bytes=7_000_000)


@pytest.mark.parametrize("ready", [True, False])
def test_the_health_service_reports_whether_the_model_is_ready(model: FakeModel, ready: bool) -> None:
    """grpc.health.v1, which Kubernetes' probes call, reports whether the model is ready."""

    async def checked() -> None:
        async with listening(model) as (channel, _):
            model.ready = ready
            health = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await health(b"") == (b"\x08\x01" if ready else b"\x08\x02")

    asyncio.run(checked())


def test_a_port_that_is_taken_is_a_settings_error(model: FakeModel) -> None:
    """The error for a port in use names the setting."""

    async def checked() -> None:
        inference = Inference(PATIENCE_S)
        first = GrpcServer(ModelRepository([inference]), 1000, shared=False, budget=roomy())
        port = await first.start("127.0.0.1", 0)
        second = GrpcServer(ModelRepository([inference]), 1000, shared=False, budget=roomy())
        with pytest.raises(SettingsError, match="FLORENCE_GRPC_PORT names another port"):
            await second.start("127.0.0.1", port)
        await first.stop(0)

    asyncio.run(checked())


def test_an_ipv6_address_is_taken_without_brackets() -> None:
    """An IPv6 address needs no brackets, as in the setting for HTTP."""

    async def start() -> int:
        server = GrpcServer(ModelRepository([Inference(PATIENCE_S)]), 1000, shared=False, budget=roomy())
        try:
            return await server.start("::1", 0)
        finally:
            await server.stop(0)

    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    assert asyncio.run(start()) > 0


def test_a_compressed_message_counts_as_long_as_it_is_without(model: FakeModel) -> None:
    """A small compressed message is refused if its decompressed size is over the limit."""

    async def check(stub: Any, inference: Inference) -> None:
        infer = caption(image=bytes(5_000_000))
        code, words = await status(stub.ModelInfer(infer, compression=grpc.Compression.Gzip))
        assert (code, "larger than max" in words) == ("RESOURCE_EXHAUSTED", True)

    run(model, check, max_bytes=100_000)
