"""Triton's own client over gRPC, used as its users do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def triton_inputs(picture: bytes, task: bytes = b"<CAPTION>") -> list[Any]:
    """The inputs of one row: the picture's bytes, and a task."""
    made = []
    for name, value in (("INPUT_IMAGE", picture), ("TASK_PROMPT", task)):
        tensor = triton.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        made.append(tensor)
    return made


def ask_triton(port: int, picture: bytes, task: bytes = b"<CAPTION>") -> dict[str, Any]:
    """The answer of a server on this machine, which must be ready."""
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_ready()
        answer = client.infer("florence2", triton_inputs(picture, task)).as_numpy("PARSED_JSON")
    return dict(json.loads(answer.item()))
