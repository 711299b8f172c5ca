"""The programs in the text of the replaced Triton deployment, which have to run unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from serving import Server


def seed_program(shared: Path, number: int, server: Server, **replaced: str) -> str:
    """The program of that number in the seed's text, with this server's address and these paths in it."""
    programs = re.findall(
        r"```\n(import base64.*?|from concurrent.*?)```", (shared / "seed.md").read_text(), re.DOTALL
    )
    program = programs[number].replace("http://localhost:8000", server.url)
    for old, new in replaced.items():
        assert old.replace("__", "/") in program
        program = program.replace(old.replace("__", "/"), new)
    return program


def run_program(program: str) -> str:
    """What the program prints, run by an interpreter of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
