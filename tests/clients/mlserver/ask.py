"""MLServer's codecs, its types over REST and gRPC, and its command: `ask.py URL GRPC PICTURE` prints the
results of each as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import grpc
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse

MODEL = "florence2"


def request(picture: bytes, use_bytes: bool = False) -> InferenceRequest:
    """A request with the picture in the base64 codec and the task in the string codec; gRPC carries bytes,
    JSON texts."""
    image = Base64Codec.encode_input("INPUT_IMAGE", [picture], use_bytes=use_bytes)
    task = StringCodec.encode_input("TASK_PROMPT", ["<CAPTION>"], use_bytes=use_bytes)
    return InferenceRequest(id="m", inputs=[image, task])


def caption(answer: InferenceResponse) -> str:
    """The caption in an answer."""
    (text,) = StringCodec.decode_output(answer.outputs[0])
    return str(json.loads(text)["<CAPTION>"])


def over_rest(url: str, picture: bytes) -> str:
    """The caption over REST."""
    body = request(picture).model_dump_json(exclude_none=True).encode()
    headers = {"Content-Type": "application/json"}
    sent = urllib.request.Request(f"{url}/v2/models/{MODEL}/infer", body, headers)
    with urllib.request.urlopen(sent, timeout=60) as reply:
        return caption(InferenceResponse.model_validate_json(reply.read()))


def over_grpc(address: str, picture: bytes) -> str:
    """The caption over gRPC."""
    with grpc.insecure_channel(address) as channel:
        message = ModelInferRequestConverter.from_types(request(picture, True), model_name=MODEL)
        answer = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)
    return caption(ModelInferResponseConverter.to_types(answer))


def by_command(url: str, picture: bytes) -> str:
    """The caption from `mlserver infer`, which reads a file of requests and writes one of answers."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        lines = [request(picture).model_dump_json(exclude_none=True)] * 3
        asked.write_text("\n".join(lines) + "\n")
        command = [
            str(Path(sys.executable).parent / "mlserver"),
            "infer",
            "--url",
            url.removeprefix("http://"),
        ]
        files = ["--input-data-path", str(asked), "--output-data-path", str(answered)]
        subprocess.run([*command, "--model-name", MODEL, *files], check=True, capture_output=True, timeout=60)
        answers = [InferenceResponse.model_validate_json(line) for line in answered.read_text().splitlines()]
    (text,) = {caption(answer) for answer in answers}
    return text


def main(url: str, address: str, picture: bytes) -> None:
    """Ask in each way and print the results."""
    seen: dict[str, Any] = {
        "REST: caption": over_rest(url, picture),
        "gRPC: caption": over_grpc(address, picture),
        "infer: caption": by_command(url, picture),
    }
    print(json.dumps(seen))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
