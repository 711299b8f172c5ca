"""How many cores this process may use, and how many readers suit them. Linux; reads the cgroup's limits.
Knows nothing about pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from florence.readers.readers import THREADS


def default_readers(*, on_gpu: bool, workers: int = 1) -> int:
    """Readers for each of `workers`: on a GPU its share of the cores, less two for the engine and HTTP; else
    `THREADS`."""
    return max(1, available_cores() // workers - 2) if on_gpu else THREADS


def available_cores(root: Path = Path("/")) -> int:
    """Cores that the scheduler and the cgroup's CPU quota (version 1 or 2) leave to this process; 1 or more.

    A fraction of a core is not counted. `root`: the directory that has proc and sys.
    """
    quotas = [int(quota) for quota in _quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """The quota, in cores, of each cgroup that this process is in, directly or through a parent."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = mount / path.lstrip("/")
        # A container may see its own group at the mount, not at `path`.
        for folder in [group, *group.parents]:
            if folder.is_relative_to(mount) and (quota := read(folder)) is not None:
                yield quota


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota < 0 else quota / period
