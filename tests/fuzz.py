"""The long form of the fuzzers: `make fuzz`, or `python tests/fuzz.py --help`.

Inputs are numbered, so a run that was cut off goes on with `--start`. Function level: any other exception
than the package's own ends the run, with the input's kind, seed and number. Over HTTP and gRPC: so does an
answer of 500 or more but 503 with Retry-After, or none in time.

Prints by how much memory grew, beside what is kept to be used again: this process gives back what it has
freed before it is measured; the service remembers few pictures, and its readers have decoded large ones.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import fuzzing
import grpc
import httpx
import numpy as np
import psutil
from serving import Server, serving_demo

WARM_UP = 1000  # or a quarter of all
EVERY = 100
PATIENCE_S = 60.0
KEPT_BYTES = 1_000_000  # of the latest pictures, so that a quarter of a run fills it
HTTP_KINDS = {
    "infer": ("/v2/models/florence2/infer", "application/json"),
    "generate": ("/v2/models/florence2/generate", "application/json"),
    "typed": ("/caption", "application/json"),
    "form": ("/ocr", "multipart/form-data; boundary=edge"),
    "picture": ("/caption", "multipart/form-data; boundary=edge"),
}


def main() -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--inputs", type=int, default=160_000, help="of each kind, at function level")
    parser.add_argument("--requests", type=int, default=40_000, help="of each kind, over HTTP and gRPC")
    parser.add_argument("--kinds", default=",".join(fuzzing.TARGETS), help="at function level")
    parser.add_argument("--doors", default=",".join((*HTTP_KINDS, "grpc")), help="over HTTP and gRPC")
    asked = parser.parse_args()
    for kind in filter(None, asked.kinds.split(",")):
        target = fuzzing.TARGETS[kind]

        def feed(number: int) -> str:
            target.feed(target.input(kind, asked.seed, number))  # noqa: B023
            return "read or refused"

        with quiet():  # libtiff writes of each damaged file
            run(kind, feed, asked.start, asked.inputs, [psutil.Process()], give_back)
    if asked.requests:
        with serving_demo(FLORENCE_PICTURE_CACHE_BYTES=str(KEPT_BYTES)) as server:
            read_large_pictures(server)
            over_network(server, asked.doors.split(","), asked.seed, asked.start, asked.requests)
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what C libraries write to stderr; an exception that comes out is shown after it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def read_large_pictures(server: Server) -> None:
    """Let each reader take the memory that it keeps for its next pictures."""
    upload = {"image": fuzzing.large_picture()}
    with ThreadPoolExecutor(4) as pool:
        sent = [
            pool.submit(httpx.post, server.url + "/caption", files=upload, timeout=PATIENCE_S)
            for _ in range(16)
        ]
        for reply in sent:
            reply.result().raise_for_status()


def over_network(server: Server, doors: list[str], seed: int, start: int, requests: int) -> None:
    """HTTP requests of these kinds, and gRPC messages, to a service with the demo checkpoint."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    host, port = server.url.removeprefix("http://").split(":")
    for kind in doors:
        if kind == "grpc":
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                run("gRPC", grpc_sender(channel, seed), start, requests, processes)
            continue
        path, content_type = HTTP_KINDS[kind]
        send = http_sender(host, int(port), kind, path, content_type, seed)
        run(f"HTTP {kind}", send, start, requests, processes)


def http_sender(
    host: str, port: int, kind: str, path: str, content_type: str, seed: int
) -> Callable[[int], str]:
    """What sends the input of a number, and returns its status."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)

    def send(number: int) -> str:
        body = http_body(kind, seed, number)
        connection.request("POST", path, body, {"Content-Type": content_type})
        reply = connection.getresponse()
        reply.read()
        if reply.status >= 500 and not (reply.status == 503 and reply.getheader("Retry-After")):
            raise AssertionError(f"{reply.status} for HTTP {kind}, seed {seed}, number {number}")
        return str(reply.status)

    return send


def http_body(kind: str, seed: int, number: int) -> bytes:
    """The body of that number; a damaged picture stands in a whole form."""
    source = random.Random(f"HTTP {kind} {seed} {number}")
    if kind == "form":
        return fuzzing.mutate(source, fuzzing.form_body())
    made = fuzzing.TARGETS[kind].input(f"HTTP {kind}", seed, number)
    if kind != "picture":
        return made
    whole = fuzzing.pictures()["PNG RGB"]
    return fuzzing.form_body().replace(whole, made)


def grpc_sender(channel: grpc.Channel, seed: int) -> Callable[[int], str]:
    """What sends the message of a number, and returns its status."""
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def send(number: int) -> str:
        try:
            call(fuzzing.TARGETS["grpc"].input("gRPC", seed, number), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code = error.code()
            if code not in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.UNAVAILABLE,
            ):
                raise AssertionError(f"{code} for gRPC, seed {seed}, number {number}") from error
            return str(code.name)
        return "OK"

    return send


def own_mib(pid: int) -> float:
    """What a process has taken for itself: pages of files come and go with the machine's other work."""
    (line,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) / 1024


def give_back() -> None:
    """Let glibc return what this process has freed, where it is the C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run(
    name: str,
    feed: Callable[[int], str],
    start: int,
    count: int,
    processes: list[psutil.Process],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Feed inputs, and say what came of them, how fast, and how memory grew. before: each look at it."""
    said: Counter[str] = Counter()
    numbers, memory = [], []
    began = time.monotonic()
    for number in range(start, start + count):
        try:
            said[feed(number)] += 1
        except Exception as error:
            error.add_note(f"{name}, number {number}")
            raise
        if (number - start) % EVERY == 0 and number - start >= max(WARM_UP, count // 4):
            before()
            numbers.append(number)
            memory.append(sum(own_mib(process.pid) for process in processes))
    slope = 1e4 * float(np.polyfit(numbers, memory, 1)[0]) if len(numbers) > 2 else float("nan")
    seconds = time.monotonic() - began
    print(
        f"{name}: {count} inputs from {start}, {seconds:.0f} s, {slope:+.2f} MiB in 10,000, {dict(said)}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
