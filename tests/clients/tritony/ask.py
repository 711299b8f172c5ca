"""tritony's client over gRPC and HTTP: `ask.py URL GRPC PICTURE` prints the results as JSON."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
from tritony import InferenceClient


def caption(client: InferenceClient, picture: bytes) -> str:
    """The caption of three equal rows."""
    image = np.array([[base64.b64encode(picture)]] * 3, dtype=np.object_)
    task = np.array([[b"<CAPTION>"]] * 3, dtype=np.object_)
    answers = client({"INPUT_IMAGE": image, "TASK_PROMPT": task})
    texts = {str(json.loads(text)["<CAPTION>"]) for text in np.asarray(answers).reshape(-1)}
    (text,) = texts
    return text


def main(url: str, address: str, picture: bytes) -> None:
    """Ask over each protocol and print the results."""
    seen = {}
    for protocol, server in (("grpc", address), ("http", url.removeprefix("http://"))):
        for concurrent in (True, False) if protocol == "grpc" else (True,):
            client = InferenceClient.create_with("florence2", server, protocol=protocol, run_async=concurrent)
            seen[f"{protocol}, {'several' if concurrent else 'one'} at once"] = caption(client, picture)
    print(json.dumps(seen))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
