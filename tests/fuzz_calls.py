"""gRPC calls of the service made from a seed: inference with raw and typed contents of every datatype, whole
and damaged, streams of them, and every other method.

A call is determined by its endpoint, seed and number alone. Knows nothing about sending.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from fuzz_parts import Made
from fuzzing import mutate
from tritonclient.grpc import service_pb2

from florence.server.v2.tensors import DATATYPES, pack

INFERENCE: Final = "/inference.GRPCInferenceService/"
STREAM: Final = INFERENCE + "ModelStreamInfer"
_DESCRIBE: Final = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting",
    "LogSettings", "None",
)  # fmt: skip
_OTHERS: Final = (
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_CONTENTS: Final = (
    "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
    "fp64_contents",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A gRPC call. messages: those of a stream, or the single one of a unary call."""

    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str], ...] = ()


def call_of(door: str, seed: int, number: int) -> Call:
    """The call with this number; `door` is `grpc` or `stream`."""
    source = random.Random(f"{door} {seed} {number}")
    metadata = _metadata(source)
    if door == "stream":
        return Call(STREAM, tuple(_infer(source) for _ in range(source.randint(0, 4))), metadata)
    if source.randrange(6):
        return Call(INFERENCE + "ModelInfer", (_infer(source),), metadata)
    method = source.choice([INFERENCE + name for name in _DESCRIBE] + list(_OTHERS))
    known = service_pb2.ModelMetadataRequest(name="florence2", version=source.choice(("", "1", "2", "x")))
    return Call(method, (_maybe(source, known.SerializeToString(deterministic=True)),), metadata)


def _maybe(source: random.Random, data: bytes) -> bytes:
    """The data, changed in two of three cases."""
    return mutate(source, data) if source.randrange(3) else data


def _infer(source: random.Random) -> bytes:
    """A ModelInferRequest: some values are odd, and in two of five the bytes are damaged."""
    made, rows = Made(source, ""), source.randint(1, 3)
    columns = {"INPUT_IMAGE": [made.picture] * rows, "TASK_PROMPT": [made.task.token.encode()] * rows}
    if (text := made.text) is not None:
        columns["TEXT_PROMPT"] = [text.encode()] * rows
    sent = service_pb2.ModelInferRequest(model_name="florence2", id="7")
    raw = source.randrange(2) == 0
    for name, elements in columns.items():
        odd = source.randrange(8) == 0
        datatype = source.choice(sorted(DATATYPES)) if odd else "BYTES"
        tensor = sent.inputs.add(name=name, datatype=datatype, shape=[rows, 1])
        if odd:
            _fill(source, tensor.contents)
        if raw:
            data = pack(elements)
            sent.raw_input_contents.append(mutate(source, data) if source.randrange(8) == 0 else data)
        else:
            tensor.contents.bytes_contents.extend(elements)
    for name, value in made.options.items():
        _set(source, sent.parameters[name], value)
    if source.randrange(2):
        sent.outputs.add(name=source.choice(("PARSED_JSON", "x")))
    data = bytes(sent.SerializeToString(deterministic=True))
    return mutate(source, data) if source.randrange(5) < 2 else data


def _fill(source: random.Random, contents: Any) -> None:
    """Put elements of another type into a tensor."""
    field = source.choice(_CONTENTS)
    if source.randrange(3):
        getattr(contents, field).extend([True if field.startswith("bool") else 1] * source.randint(1, 3))


def _set(source: random.Random, parameter: Any, value: Any) -> None:
    """Set a parameter in the field for the value's type; at times in another."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    if type(value) is int and value >= 2**63:
        parameter.uint64_param = value % 2**64
    elif type(value) in kinds and source.randrange(8):
        text = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        setattr(parameter, kinds[type(value)], text)
    elif source.randrange(3):
        parameter.string_param = ascii(value)


def _metadata(source: random.Random) -> tuple[tuple[str, str], ...]:
    """Up to two metadata entries, some damaged."""
    known = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-request-id": "a1b2:c3",
        "authorization": "Bearer " + "a1" * 16,
        "tracestate": "a=b",
    }
    made = []
    for name in source.sample(sorted(known), source.choice((0, 0, 0, 1, 2))):
        value = known[name].encode()
        damaged = mutate(source, value) if source.randrange(2) else value
        made.append((name, "".join(chr(each) for each in damaged[:2000] if 32 <= each < 127)))
    return tuple(made)
