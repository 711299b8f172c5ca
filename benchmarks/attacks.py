"""Measure the effect of valid-looking requests that cost too much on a service and on its other callers.

    python benchmarks/attacks.py [--only SUBSTRING,SUBSTRING] [--scale 0.01]

It starts `bentoml serve` with the demo checkpoint in float32 for each group of attacks, and attacks it from a
separate process. For each attack it prints the duration, the service's CPU seconds meanwhile, the growth of
its memory (proportional set size), the longest wait of a health probe over new connections and of another
caller's caption, bytes of the log, and the attack's answers. A figure above the limit that the service keeps
for two concurrent requests is marked; some attacks send thousands.
"""

from __future__ import annotations

import http.client
import json
import resource
import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import psutil
from against import calls, connections, doors
from against.target import Attack, Target
from bodies import as_text, small_picture
from command import parser_of
from probes import FORK, waiting
from serving import Server, serving

BOUNDS = {"cpu_s": 6.0, "memory_mib": 600.0, "health_s": 0.5, "caller_s": 5.0, "log_kb": 64.0}
EVERY_S = 0.05
ANSWER_S = 120.0

CALLER: Mapping[str, str] = {"Authorization": doors.KEY["Authorization"]}
GROUPS: tuple[tuple[Mapping[str, str], Mapping[str, Attack]], ...] = (
    (
        {"FLORENCE_IMAGE_HOSTS": "127.0.0.1:{web}", "FLORENCE_IMAGE_NETWORKS": "127.0.0.0/8"},
        {
            "nothing": lambda target: time.sleep(6 * target.scale),
            **connections.ATTACKS,
            **doors.ATTACKS,
            **calls.ATTACKS,
            **doors.URLS,
        },
    ),
    ({"FLORENCE_API_KEYS": f"caller:{'k' * 64}"}, doors.KEYS),
)
"""Settings of a service, with {web} for the port of the host of `image_url`, and its attacks."""


def main() -> None:
    """Run the attacks."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="attacks whose names contain one of these")
    parser.add_argument("--scale", type=float, default=1.0, help="of numbers of clients and requests")
    asked = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = [each for each in asked.only.split(",") if each]
    for settings, attacks in GROUPS:
        chosen = {
            name: attack
            for name, attack in attacks.items()
            if not wanted or any(each in name for each in wanted)
        }
        if not chosen:
            continue
        web = socket.create_server(("127.0.0.1", 0))
        FORK.Process(target=doors.web, args=(web,), daemon=True).start()
        common = {"FLORENCE_MODEL": "demo", "FLORENCE_DTYPE": "float32"}
        web_port = web.getsockname()[1]
        named = {name: value.replace("{web}", str(web_port)) for name, value in settings.items()}
        with serving("service:service", **common, **named) as server:
            port = int(server.url.rpartition(":")[2])
            target = Target(port, server.grpc_port, web_port, asked.scale)
            for name, attack in chosen.items():
                print(row(name, *measured(server, target, attack)), flush=True)


def row(name: str, figures: Mapping[str, float], said: object) -> str:
    """The line of one attack."""
    marks = {name: "!" if value > BOUNDS.get(name, value) else "" for name, value in figures.items()}
    told = [f"{name} {value:.2f}{marks[name]}" for name, value in figures.items()]
    return f"{name:40} {' '.join(told)}  {str(said)[:200]}"


def measured(server: Server, target: Target, attack: Attack) -> tuple[dict[str, float], object]:
    """The figures of `BOUNDS`, and the attack's summary."""
    said: Any = FORK.SimpleQueue()
    attacker = FORK.Process(target=lambda: said.put(attack(target)))
    with waiting(
        {"probe": partial(probe, target.port), "call": partial(call, target.port)}, EVERY_S
    ) as found:
        processes = Processes(psutil.Process(server.process.pid))
        before, spent, size = processes.memory(), processes.cpu(), server.log.stat().st_size
        attacker.start()
        started, peak = time.monotonic(), before
        while attacker.is_alive():
            peak = max(peak, processes.memory())
            attacker.join(EVERY_S)
        time.sleep(0.5)
    return {
        "seconds": time.monotonic() - started,
        "cpu_s": processes.cpu() - spent,
        "memory_mib": peak - before,
        "health_s": found["probe"],
        "caller_s": found["call"],
        "log_kb": (server.log.stat().st_size - size) / 1e3,
    }, said.get() if not said.empty() else "the attack failed"


class Processes:
    """A process and its descendants, including those that have ended."""

    def __init__(self, root: psutil.Process) -> None:
        self._root, self._spent = root, dict[tuple[int, float], float]()

    def memory(self) -> float:
        """The memory now, in MiB."""
        total = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
                spent = sum(process.cpu_times()[:2])
                self._spent[process.pid, process.create_time()] = spent
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return total / 2**20

    def cpu(self) -> float:
        """CPU seconds so far."""
        self.memory()
        return sum(self._spent.values())


def probe(port: int) -> None:
    """Send a health probe over a new connection."""
    _ask(port, "GET", "/v2/health/live", None)


def call(port: int) -> None:
    """Ask for another caller's caption."""
    body = {"image": as_text(small_picture()), "max_new_tokens": 3, "num_beams": 1}
    _ask(port, "POST", "/caption", json.dumps(body))


def _ask(port: int, method: str, path: str, body: str | None) -> None:
    """Send a request and read the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body, dict(CALLER))
        connection.getresponse().read()
    except OSError:
        pass
    finally:
        connection.close()


if __name__ == "__main__":
    main()
