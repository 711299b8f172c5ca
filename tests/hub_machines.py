"""Machines that download checkpoints from a hub on 127.0.0.1, and the files on that hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import reload
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
from hub_server import HubServer, Repository
from huggingface_hub import constants
from waiting import PATIENCE_S

from florence.checkpoint.hub import resolve_checkpoint
from florence.errors import CheckpointError

NAME = "someone/small-florence"
MEGABYTE = 2**20
WEIGHTS = bytes(range(256))
# huggingface_hub writes in steps of 10 MiB: only a larger file leaves something behind when it is cut off.
LARGE = WEIGHTS * (24 * MEGABYTE // len(WEIGHTS))
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

_PROGRAM = """
import json, sys
from hub_machines import look_up
print(json.dumps(look_up(*sys.argv[1:])))
"""


@dataclass
class Found:
    """The checkpoint that a name leads to, or the error. progress: the stderr of the process."""

    directory: Path = Path()
    revision: str = ""
    label: str = ""
    files: Sequence[str] = ()
    error: str = ""
    progress: str = ""


def look_up(name: str, revision: str = "", base: str = "") -> dict[str, Any]:
    """The fields of `Found` for a checkpoint."""
    try:
        found = resolve_checkpoint(name, revision or None, base or None)
    except CheckpointError as error:
        return {"error": str(error)}
    files = [file.name for file in found.files]
    return {
        "directory": str(found.directory),
        "revision": found.revision,
        "label": found.label,
        "files": files,
    }


@dataclass
class Machine:
    """A machine whose hub is `endpoint` and whose cache is `home`."""

    home: Path
    endpoint: str

    def resolve(self, name: str = NAME, revision: str = "", base: str = "", **variables: str) -> Found:
        """Resolve a name in this process, after the hub's library has read the variables again."""
        with self.library(**variables):
            return _found(look_up(name, revision, base))

    def start(self, **variables: str) -> Found:
        """Resolve `NAME` in a process of its own."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM, NAME],
            env=self._variables(PYTHONPATH=os.pathsep.join(paths), **variables),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr
        return _found({**json.loads(run.stdout.splitlines()[-1]), "progress": run.stderr})

    @contextmanager
    def library(self, **variables: str) -> Iterator[None]:
        """Reload `huggingface_hub` with this machine's variables."""
        try:
            with patch.dict(os.environ, self._variables(**variables), clear=True):
                reload(constants)
                yield
        finally:
            huggingface_hub.close_session()
            reload(constants)

    def _variables(self, **variables: str) -> dict[str, str]:
        """The environment of this machine's processes."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1"}
        own |= dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), str(int(PATIENCE_S)))
        return {**clean, **own, **variables}


def _found(fields: dict[str, Any]) -> Found:
    """A `Found` with these fields."""
    return Found(**{**fields, "directory": Path(fields.get("directory", ""))})


def serve(files: dict[str, bytes], **more: Repository) -> HubServer:
    """A hub with these files in one repository, and further repositories."""
    return HubServer({NAME: Repository({"main": files}), **more})
