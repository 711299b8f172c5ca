"""Measure how two workers share the requests of gRPC clients in one process.

    python benchmarks/grpc_workers.py [--clients 8] [--requests 15]

Triton's clients, each in a thread, ask for captions with the demo checkpoint: with their default options,
which share one connection, and with a connection pool for each. Prints requests per second, and the CPU
seconds of each worker.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import tritonclient.grpc as triton
from command import parser_of
from serving import ROOT, Server, serving

POOL = [("grpc.use_local_subchannel_pool", 1)]
ANSWER_S = 300.0
BOTH_S = 120.0


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=15, help="of each client, one after the other")
    asked = parser.parse_args()
    settings = {"FLORENCE_MODEL": "demo", "FLORENCE_DTYPE": "float32", "FLORENCE_DEVICE": "cpu,cpu"}
    with serving("service:service", **settings) as server:
        wait_for_both(server)
        for name, options in (("one connection", None), ("pools", POOL)):
            rate, seconds = share(server, options, asked.clients, asked.requests)
            told = " and ".join(f"{each:.1f}" for each in seconds)
            print(f"{name:14} {rate:6.1f} requests/s, CPU seconds of the workers: {told}", flush=True)


def wait_for_both(server: Server) -> None:
    """Wait until each worker has logged that it is ready."""
    end = time.monotonic() + BOTH_S
    while server.log.read_text(errors="replace").count("ready: demo") < 2:
        if time.monotonic() > end:
            raise SystemExit("the second worker did not start")
        time.sleep(0.2)


def share(
    server: Server, options: list[tuple[str, int]] | None, clients: int, requests: int
) -> tuple[float, list[float]]:
    """Requests per second, and each worker's CPU seconds."""
    inputs = caption_inputs()
    address = f"127.0.0.1:{server.grpc_port}"

    def ask(client: triton.InferenceServerClient) -> None:
        for _ in range(requests):
            client.infer("florence2", inputs, client_timeout=ANSWER_S)

    before, started = cpu_seconds(server), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        made = [triton.InferenceServerClient(address, channel_args=options) for _ in range(clients)]
        list(pool.map(ask, made))
    rate = clients * requests / (time.perf_counter() - started)
    return rate, [after - other for after, other in zip(cpu_seconds(server), before, strict=True)]


def cpu_seconds(server: Server) -> list[float]:
    """The CPU seconds of each worker, without its readers."""
    times = [worker.cpu_times() for worker in psutil.Process(server.process.pid).children()]
    return [each.user + each.system for each in times]


def caption_inputs() -> list[triton.InferInput]:
    """The inputs of a request for a caption."""
    values = {"INPUT_IMAGE": (ROOT / "data" / "scene_02.png").read_bytes(), "TASK_PROMPT": b"<CAPTION>"}
    inputs = []
    for name, value in values.items():
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[value]], dtype=np.object_))
    return inputs


if __name__ == "__main__":
    main()
