"""What workers of one service tell each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from florence.server.supervisor import a_sibling_serves, mark_loaded


def test_a_worker_sees_others_that_are_loaded_and_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not itself, and none that died; without a shared folder there are none."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    mark_loaded()
    assert not a_sibling_serves()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    mark_loaded()
    assert not a_sibling_serves()
    code = "from florence.server.supervisor import mark_loaded; mark_loaded(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as sibling:
        assert sibling.stdout is not None
        sibling.stdout.readline()
        assert a_sibling_serves()
        sibling.kill()
    assert not a_sibling_serves()
