"""Measure the time from a command until it answers, phase by phase, with the demo checkpoint.

    python benchmarks/start.py --rounds 5

Each phase runs in new processes: imports, the library's load, `florence run`, and `florence serve` until it
is ready. The last three run with the compiled kernels of an earlier process, and without. Prints medians of
the seconds, and of the CPU seconds of all processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from command import medians, parser_of
from ports import free_port
from serving import cpu_seconds

PICTURE = str(Path(__file__).resolve().parents[1] / "data" / "scene_02.png")
CLI = ["-c", "import sys; from florence.cli import main; sys.exit(main())"]
RUN = [*CLI, "run", PICTURE, "caption", "--model", "demo"]
LOAD = ["-c", "from florence import Florence2; m = Florence2.load('demo'); m.warm_up(); m.close()"]
STEPS = [  # name, arguments of Python, whether compiled kernels exist
    ("Python", ["-c", "pass"], True),
    ("import torch", ["-c", "import torch"], True),
    ("import the service, BentoML in it", ["-c", "from florence.server.entry import service"], True),
    ("library: import, load, warm up", LOAD, True),
    ("the same, compiling", LOAD, False),
    ("`florence run`", RUN, True),
    ("the same, compiling", RUN, False),
    ("`florence serve`, until ready", [], True),
    ("the same, compiling", [], False),
]
READY_S, POLL_S = 120.0, 0.02
Times = tuple[float, float]
"""Seconds, and CPU seconds."""


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="phases whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(LOAD, f"{folder}/kept")  # fill the caches: bytecode, disk, kernels
        print("| | s | CPU-s |\n|---|---|---|")
        for number, (name, arguments, warm) in enumerate(STEPS):
            if options.only not in name:
                continue
            caches = [f"{folder}/{'kept' if warm else f'{number}-{turn}'}" for turn in range(options.rounds)]
            times = [run(arguments, cache) if arguments else serve(cache) for cache in caches]
            wall, cpu = medians(times)
            print(f"| {name} | {wall:.2f} | {cpu:.2f} |", flush=True)


def run(arguments: list[str], cache: str) -> Times:
    """The times of a program from its start to its end."""
    began, before = time.perf_counter(), os.times()
    command = [sys.executable, *arguments]
    subprocess.run(command, env=environment(cache), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu_s


def serve(cache: str) -> Times:
    """The times of the service from its start until it is ready; its end is not measured."""
    port = free_port()
    began = time.perf_counter()
    command = [sys.executable, *CLI, "serve", "--model", "demo", "--port", str(port)]
    with subprocess.Popen(
        command, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not is_ready(port):
                if process.poll() is not None or time.perf_counter() - began > READY_S:
                    raise SystemExit("the service did not become ready")
                time.sleep(POLL_S)
            wall_s = time.perf_counter() - began
            return wall_s, cpu_seconds(process.pid)
        finally:
            process.terminate()


def is_ready(port: int) -> bool:
    """True if the service is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment(cache: str) -> dict[str, str]:
    """This environment with its own cache, which has compiled kernels or none."""
    settings = {"XDG_CACHE_HOME": cache, "TMPDIR": f"{cache}-tmp"}
    Path(settings["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    return {**os.environ, **settings, "FLORENCE_GRPC_PORT": "0", "BENTOML_DO_NOT_TRACK": "true"}


if __name__ == "__main__":
    main()
