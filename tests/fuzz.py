"""The long form of the fuzzers: `make fuzz`, or `python tests/fuzz.py --help`.

Inputs are numbered, so `--start` continues a run that was cut off. At function level, any exception other
than the package's own ends the run and reports the input's kind, seed and number. Over HTTP and gRPC, so does
an answer that `fuzz_senders.wrong_answer` refuses (such as a 500), a missing answer, and an error in the
service's log.

It prints by how much memory grew beside the memory that is kept for reuse: this process returns freed memory
before it is measured; the service caches few pictures, and its readers have decoded large ones.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import fuzzing
import grpc
import httpx
import numpy as np
import psutil
import requests
from agents import serving_tools
from fuzz_agents import MCP
from fuzz_doors import DOORS
from fuzz_parts import ADAPTER
from fuzz_schema import ask_by_document
from fuzz_senders import PATIENCE_S, Send, grpc_sender, http_sender, picture_host, raw_sender
from lora import write_lora
from serving import Server, serving_demo

from florence.checkpoint.hub import resolve_checkpoint

WARM_UP = 1000  # or a quarter of all
EVERY = 100  # inputs between two looks at the memory and the log
TOLD = 10_000  # inputs between two lines
KEPT_BYTES = 1_000_000  # of the picture cache; a quarter of a run fills it
TOGETHER = 4  # requests at a time
OVER_GRPC = ("grpc", "stream")
ROLES = {
    "bentoml serve": "supervisor",
    "_bentoml_impl.worker": "worker",
    "readers.worker": "readers",
    "cli mcp": "mcp",
}
_ERRORS = re.compile(r".*(?:Traceback \(most|\bERROR\b|\bCRITICAL\b).*")

Memory = Callable[[], Mapping[str, float]]
"""The private memory of the processes now, in MiB, by role."""


def main() -> int:
    """Run the fuzzers; return 0 if they find nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--inputs", type=int, default=160_000, help="of each kind, at function level")
    parser.add_argument("--requests", type=int, default=200_000, help="over HTTP and gRPC")
    parser.add_argument("--kinds", default=",".join(fuzzing.TARGETS), help="at function level")
    parser.add_argument(
        "--doors", default=",".join((*DOORS, MCP, "raw", *OVER_GRPC)), help="over HTTP and gRPC"
    )
    parser.add_argument("--examples", type=int, default=200, help="of each operation, by the document")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each of these runs")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # the service is ended too

    def numbers(count: int) -> range:
        return range(asked.start, asked.start + count)

    for kind in filter(None, asked.kinds.split(",")):
        with quiet():  # libtiff prints a warning for each damaged file
            run(kind, function_feeder(kind, asked.seed), numbers(asked.inputs), own_memory, asked.seconds)
    if not asked.requests and not asked.examples:
        return 0
    with fuzzed_service() as (server, host):
        if asked.requests:
            read_large_pictures(server)
            doors, over_net = asked.doors.split(","), numbers(asked.requests)
            over_network(server, host, doors, asked.seed, over_net, asked.seconds)
        if asked.examples:
            by_document(server, asked.examples, asked.seed)
    return 0


def function_feeder(kind: str, seed: int) -> Send:
    """A function that reads the input of a number."""
    target = fuzzing.TARGETS[kind]

    def feed(number: int) -> str:
        target.feed(target.input(kind, seed, number))
        return "read or refused"

    return feed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what C libraries write to stderr in this block."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def fuzzed_service() -> Iterator[tuple[Server, str]]:
    """Start the demo checkpoint with an adapter; yield the server and the host from which it may fetch
    pictures."""
    with picture_host() as host, tempfile.TemporaryDirectory() as folder:
        adapter = write_lora(resolve_checkpoint("demo").directory, Path(folder) / ADAPTER)
        settings = {
            "FLORENCE_PICTURE_CACHE_BYTES": str(KEPT_BYTES),
            "FLORENCE_ADAPTERS": f"{ADAPTER}={adapter}",
            "FLORENCE_IMAGE_HOSTS": host,
            "FLORENCE_IMAGE_NETWORKS": "127.0.0.0/8",
        }
        with serving_demo(**settings) as server:
            yield server, host


def read_large_pictures(server: Server) -> None:
    """Send large pictures, so that each reader takes the memory that it keeps for later pictures."""
    upload = {"image": fuzzing.large_picture()}
    with ThreadPoolExecutor(4) as pool:
        sent = [
            pool.submit(httpx.post, server.url + "/caption", files=upload, timeout=PATIENCE_S)
            for _ in range(16)
        ]
        for reply in sent:
            reply.result().raise_for_status()


def over_network(
    server: Server, host: str, doors: list[str], seed: int, numbers: range, seconds: float
) -> None:
    """Send requests to these endpoints of a service in turn. host: of the pictures that have a URL."""
    name, port = server.url.removeprefix("http://").split(":")
    address = name, int(port)
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        serving_tools(server.url) as tools,
    ):
        senders: list[tuple[str, Send]] = []
        for door in doors:
            if door in OVER_GRPC:
                senders.append((door, grpc_sender(channel, door, seed)))
            elif door == "raw":
                senders.append((door, raw_sender(address, seed, host)))
            else:
                place = (name, tools.port) if door == MCP else address
                senders.append((door, http_sender(place, door, seed, host)))

        def send(number: int) -> str:
            door, sender = senders[number % len(senders)]
            return f"{door} {sender(number)}"

        memory, check = memory_of(server.process.pid, tools.pid), log_checker(server.log_path, tools.log_path)
        run("HTTP and gRPC", send, numbers, memory, seconds, TOGETHER, check)


def by_document(server: Server, examples: int, seed: int) -> None:
    """Send requests that the service's OpenAPI document allows, then requests that it forbids."""
    check = log_checker(server.log_path)
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:

        def ask(sent: requests.PreparedRequest) -> httpx.Response:
            headers = {name: value for name, value in sent.headers.items() if name.lower() != "host"}
            return client.request(str(sent.method), sent.path_url, content=sent.body, headers=headers)

        document = client.get("/docs.json").json()
        for wrong in (False, True):
            said = ask_by_document(document, ask, examples, seed, wrong=wrong)
            print(f"by the document, {'forbidden' if wrong else 'allowed'}: {dict(sorted(said.items()))}")
            check()


def log_checker(*logs: Path) -> Callable[[], None]:
    """A function that raises AssertionError if an error was logged since its last call."""
    read = {path: path.stat().st_size for path in logs}

    def check() -> None:
        for path in logs:
            with path.open("rb") as log:
                log.seek(read[path])
                text = log.read()
            read[path] += len(text)
            if found := _ERRORS.findall(text.decode("utf-8", "replace")):
                raise AssertionError(f"{path} has {len(found)} errors, the first {found[0][:500]!r}")

    return check


def memory_of(*pids: int) -> Memory:
    """A function that measures these processes and their children by role, without those that draw one
    answer."""

    def look() -> Mapping[str, float]:
        taken: Counter[str] = Counter()
        parents = [psutil.Process(pid) for pid in pids]
        for process in (each for one in parents for each in (one, *one.children(recursive=True))):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                line = " ".join(process.cmdline())
                role = next((role for part, role in ROLES.items() if part in line), None)
                if role is not None:
                    taken[role] += own_mib(process.pid)
        return taken

    return look


def own_memory() -> Mapping[str, float]:
    """This process's memory, after glibc has returned freed memory to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return {"process": own_mib(os.getpid())}


def own_mib(pid: int) -> float:
    """The private memory of a process, in MiB. Pages of files are left out: they depend on the machine's
    other work."""
    (line,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) / 1024


def run(
    name: str,
    feed: Send,
    numbers: range,
    memory: Memory,
    seconds: float,
    together: int = 1,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Feed inputs, `together` at a time, for this number of seconds; print the outcomes, the speed and the
    growth of memory. check: raises an error for anything else that is wrong."""
    said: Counter[str] = Counter()
    looks: list[tuple[int, Mapping[str, float]]] = []

    def fed(number: int) -> str:
        try:
            return feed(number)
        except BaseException as error:
            error.add_note(f"{name}, number {number}")
            raise

    def tell(done: int) -> None:
        taken = time.monotonic() - began
        print(f"{name}: {done} inputs from {numbers[0]}, {taken:.0f} s, {dict(sorted(said.items()))}")
        print(f"    MiB in 10,000 inputs: {growth(looks)}", flush=True)

    began, done = time.monotonic(), 0
    with ThreadPoolExecutor(together) as pool:
        while done < len(numbers) and time.monotonic() < began + seconds:
            part = numbers[done : done + EVERY]
            said.update(pool.map(fed, part) if together > 1 else map(fed, part))
            check()
            if done >= min(WARM_UP, len(numbers) // 4):
                looks.append((part[0], memory()))
            done += len(part)
            if done % TOLD == 0:
                tell(done)
    if done % TOLD:
        tell(done)


def growth(looks: list[tuple[int, Mapping[str, float]]]) -> str:
    """The slope of each process's memory after the first quarter, with its first and last values."""
    looks, made = looks[len(looks) // 4 :], []
    for role in looks[0][1] if len(looks) > 2 else ():
        numbers, sizes = [at for at, _ in looks], [look.get(role, 0.0) for _, look in looks]
        slope = 1e4 * float(np.polyfit(numbers, sizes, 1)[0])
        made.append(f"{role} {slope:+.2f} ({sizes[0]:.1f} to {sizes[-1]:.1f})")
    return ", ".join(made)


if __name__ == "__main__":
    sys.exit(main())
