"""Requests that benchmarks send to a service: a small picture, and bodies for v2, for gRPC and as a form."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

INFER = "/v2/models/florence2/infer"
EDGE = b"edge7f3a"
FORM = {"Content-Type": f"multipart/form-data; boundary={EDGE.decode()}"}
"""The headers of `form`."""


def small_picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def as_text(picture: bytes) -> str:
    """The picture as base64."""
    return base64.b64encode(picture).decode()


def v2_request(image: str, task: str = "<CAPTION>", text: str | None = None) -> dict[str, Any]:
    """A request for `INFER` as the users of the replaced deployment send it. `image`: base64."""
    values = {"INPUT_IMAGE": image, "TASK_PROMPT": task} | ({} if text is None else {"TEXT_PROMPT": text})
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
    ]
    return {"inputs": inputs}


def grpc_request(picture: bytes) -> Any:
    """A gRPC request for a caption, with the picture's bytes as a binary tensor."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="florence2")
    for name, value in (("INPUT_IMAGE", picture), ("TASK_PROMPT", b"<CAPTION>")):
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    return request


def form(picture: bytes) -> bytes:
    """A multipart form with the picture as its file."""
    head = b'Content-Disposition: form-data; name="image"; filename="a"'
    return b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (EDGE, head, picture, EDGE)
