"""Run programs in forks of one process that has imported the slow libraries.

A program runs as `python script.py` or `python -m module` would: its own modules and the project's are
imported again, and as `__main__` it has its folder first in the path. Threads and exit functions are waited
for; objects are not destroyed. Two variables differ from the caller's: OpenMP has one thread, and hubs are
offline.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

LIBRARIES = (
    "numpy",
    "PIL.Image",
    "torch",
    "torchvision",
    "transformers.models.florence2.modeling_florence2",
    "transformers.generation.utils",
    "httpx",
    "numba.core.registry",
    "psutil",
    "pydantic",
    "tokenizers",
    "tritonclient.grpc",
)


class Forker:
    """The first process, from which the others are forked one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, command: Sequence[str], limit_s: float, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program and kill it after `limit_s` seconds. `command`: the words after `python`. `folder`:
        its working directory; None: the current one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as outputs:
            files = [Path(outputs) / name for name in ("stdout", "stderr")]
            asked = [command, str(folder or Path.cwd()), limit_s, *map(str, files)]
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(command, status, *(file.read_text() for file in files))


@contextmanager
def forker() -> Iterator[Forker]:
    """Start the first process, and end it at the end of the block."""
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Forker(process)


def run(command: list[str], folder: str, stdout: str, stderr: str) -> None:
    """Run a Python command in this process, in this folder, with its output in these files."""
    for number, file in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(folder)
    if command[0] == "-m":
        sys.path[0], sys.argv = folder, command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(command[0]).parent), command
        runpy.run_path(command[0], run_name="__main__")


def fork_each() -> None:
    """Fork once for each line of stdin, and print each exit status."""
    for name in LIBRARIES:
        import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each fork's garbage collection copies all pages
    for line in sys.stdin:
        command, folder, limit_s, *files = json.loads(line)
        child = get_context("fork").Process(target=run, args=(command, folder, *files))
        child.start()
        child.join(limit_s)
        child.kill()
        child.join()
        sys.stdout.write(f"{child.exitcode}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    fork_each()
