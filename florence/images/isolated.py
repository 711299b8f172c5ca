"""A Python process of its own for work on untrusted bytes: what starts it, its environment, its limits.

Knows modules and numbers; knows nothing about pictures.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Final

import PIL

_PASSED: Final = ("LANG", "LC_", "LD_", "MALLOC_", "PATH", "SYSTEMROOT")


def command(module: str, *words: str, packages: tuple[Path, ...] = ()) -> list[str]:
    """The command line that runs `main` of a module of this package, with `words` as `sys.argv[1:]`.

    The process ignores Python's environment variables and the user's packages; it imports from the folders of
    this package and of Pillow, and from `packages`.
    """
    folders = [Path(__file__).parents[2], Path(PIL.__file__).parents[1], *packages]
    roots = list(dict.fromkeys(map(str, folders)))
    boot = f"import sys; sys.path += {roots!r}; from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", boot, *words]


def environment() -> dict[str, str]:
    """The environment variables of such a process: without tokens and other secrets."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}


def limit(**limits: int) -> None:
    """Set this process's soft limits by name: `core`, `cpu` (seconds), `data` (bytes of private memory). A
    lower hard limit stays. Does nothing where the system has no such limits (Windows)."""
    try:
        import resource
    except ImportError:
        return
    for name, wanted in limits.items():
        kind = getattr(resource, f"RLIMIT_{name.upper()}")
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def limit_memory(more: int) -> None:
    """Limit this process's private memory to `more` bytes above what it uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # private, writable: what is limited
    limit(data=pages * mmap.PAGESIZE + more)
