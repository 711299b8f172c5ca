"""The shared conformance probe, which holds on a real Triton, against a server with the demo checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serving import free_port, serving

pytestmark = pytest.mark.slow

MEANT = {
    "err_shape_1",  # a shape of [1] is one row here
    "err_path_root",  # BentoML's own page
}
SKIPPED = (
    "strict,messages,tclient,taio"  # exact 5xx for mistakes, wording; Triton's HTTP client is not installed
)


def test_the_probe_holds_but_for_what_is_meant(shared: Path, tmp_path: Path) -> None:
    """Over HTTP and gRPC, with Triton's metrics: bodies, statuses, counters, streams and errors."""
    port, results = free_port(), tmp_path / "results.json"
    ports = {"FLORENCE_GRPC_PORT": str(port), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    with serving(".", FLORENCE_MODEL="demo", **ports) as server:
        server.wait_ready()
        addresses = ["--http", server.url, "--metrics", server.url, "--grpc", f"127.0.0.1:{port}"]
        command = [sys.executable, str(shared / "v2" / "probe.py"), *addresses]
        ran = subprocess.run(
            [*command, "--skip", SKIPPED, "--json", str(results)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert results.exists(), ran.stdout + ran.stderr
    checks = json.loads(results.read_text())["checks"]
    assert len(checks) > 200
    failed = {check["name"]: check["detail"] for check in checks if not check["ok"]}
    assert set(failed) == MEANT, failed
