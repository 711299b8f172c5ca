"""Machines that take checkpoints from a hub on 127.0.0.1, and what lies on it.

Each look-up runs in a process of its own, since `huggingface_hub` reads HF_ENDPOINT and HF_HOME when it is
imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import HubServer, Repository

NAME = "someone/small-florence"
MEGABYTE = 2**20
# huggingface_hub writes in steps of 10 MiB: a file that is cut has to be larger to leave anything behind.
WEIGHTS = bytes(range(256)) * (24 * MEGABYTE // 256)
SMALL = {
    "config.json": b'{"model_type": "florence2"}',
    "preprocessor_config.json": b'{"size": 768}',
    "tokenizer.json": b"{}",
    "README.md": b"not asked for",
    "modeling_florence2.py": b"raise SystemExit('code from a hub was run')",
    "onnx/config.json": b"{}",
}
FILES = {**SMALL, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"never asked for"}
SHARDED = {
    **SMALL,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "consolidated.safetensors": b"another copy",
}

_RESOLVE = """
import json, sys
from florence.errors import CheckpointError
from florence.checkpoint.hub import resolve_checkpoint
try:
    found = resolve_checkpoint(sys.argv[1], sys.argv[2] or None, sys.argv[3] or None)
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({
        "directory": str(found.directory), "revision": found.revision, "label": found.label,
        "files": [file.name for file in found.files],
    }))
"""


@dataclass
class Found:
    directory: Path
    revision: str
    label: str
    error: str
    progress: str
    files: list[str]


@dataclass
class Machine:
    """A machine whose hub is `endpoint` and whose cache is `home`."""

    home: Path
    endpoint: str

    def resolve(self, name: str = NAME, revision: str = "", base: str = "", **variables: str) -> Found:
        return self.run(_RESOLVE, name, revision, base, **variables)

    def run(self, program: str, *arguments: str, **variables: str) -> Found:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        clean |= {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "127.0.0.1",
            **variables,
        }
        run = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=clean,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr
        answer = json.loads(run.stdout.splitlines()[-1])
        return Found(
            directory=Path(answer.get("directory", "")),
            revision=answer.get("revision", ""),
            label=answer.get("label", ""),
            error=answer.get("error", ""),
            progress=run.stderr,
            files=answer.get("files", []),
        )


def serve(files: dict[str, bytes], **more: Repository) -> HubServer:
    return HubServer({NAME: Repository({"main": files}), **more})
