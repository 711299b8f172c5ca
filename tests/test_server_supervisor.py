"""The workers of one service: their knowledge of each other, their exit, and their heap."""

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
    """A worker counts other live, loaded workers, not itself; without a shared folder there are none."""
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


@pytest.mark.parametrize("before", ["pass", "gc.freeze()"])
def test_a_process_that_leaves_removes_its_temporary_folders(tmp_path: Path, before: str) -> None:
    """A leaving process removes its temporary folders, also those that garbage collection skips, while
    threads still run."""
    code = (
        "import gc, tempfile, threading\n"
        "from florence.server.supervisor import leave\n"
        "folder = tempfile.TemporaryDirectory(prefix='bentoml-client-')\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        f"{before}\n"
        "leave(3)\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_threads_of_a_worker_share_one_heap() -> None:
    """With glibc, a worker's threads share one heap unless MALLOC_ARENA_MAX is set."""
    code = (
        "import ctypes, os, sys, threading\n"
        "from florence.server.supervisor import share_one_heap\n"
        "libc = ctypes.CDLL(None)\n"
        "if not hasattr(libc, 'malloc_info'):\n"
        "    print(0)\n"
        "    sys.exit()\n"
        "share_one_heap()\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(8)]\n"
        "for each in threads:\n"
        "    each.start()\n"
        "for each in threads:\n"
        "    each.join()\n"
        "libc.fdopen.restype = ctypes.c_void_p\n"
        "read, write = os.pipe()\n"
        "stream = ctypes.c_void_p(libc.fdopen(write, b'w'))\n"
        "libc.malloc_info(0, stream)\n"
        "libc.fclose(stream)\n"
        "print(os.fdopen(read).read().count('<heap '))\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    heaps = [
        int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
        for env in (inherited, inherited | {"MALLOC_ARENA_MAX": "4"})
    ]
    assert heaps[0] in (0, 1)
    assert heaps[1] == 0 or heaps[1] > 1
