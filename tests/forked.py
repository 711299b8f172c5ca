"""Scripts in processes that are forked from one process, which has imported the libraries that take seconds.

A script runs as `python script.py` would: its own modules and the project's are imported anew, as `__main__`
it has its folder before all others, and it ends as an interpreter ends. Only OpenMP's variables are those of
the first process: one thread.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from signal import alarm

LIBRARIES = (
    "numpy",
    "PIL.Image",
    "torch",
    "torchvision",
    "transformers.models.florence2.modeling_florence2",
    "transformers.generation.utils",
    "httpx",
)


class Forker:
    """The first process, from which others are forked one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, script: Path, options: Sequence[str], limit_s: int) -> subprocess.CompletedProcess[str]:
        """The script's end; after `limit_s` seconds it is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("stdout", "stderr")]
            argv = [str(script), *options]
            self._process.stdin.write(json.dumps([argv, limit_s, *map(str, files)]) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(argv, status, *(file.read_text() for file in files))


@contextmanager
def forker() -> Iterator[Forker]:
    """Started when this is entered."""
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Forker(process)


def fork_each() -> list[str]:
    """Fork for each line of stdin and print the exit status. Returns in the forked processes only: argv."""
    for name in LIBRARIES:
        import_module(name)
    for line in sys.stdin:
        argv, limit_s, *files = json.loads(line)
        child = os.fork()
        if not child:
            for number, file in enumerate([os.devnull, *files]):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
            alarm(limit_s)
            return list(argv)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
    sys.exit()


if __name__ == "__main__":
    sys.argv = fork_each()
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
