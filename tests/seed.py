"""The programs in the description of the replaced Triton deployment, which must run unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from serving import Server


def seed_program(shared: Path, number: int, server: Server, **replaced: str) -> str:
    """The program with this number, with this server's address and these paths put in."""
    programs = re.findall(
        r"```\n(import base64.*?|from concurrent.*?)```", (shared / "seed.md").read_text(), re.DOTALL
    )
    program = programs[number].replace("http://localhost:8000", server.url)
    for old, new in replaced.items():
        assert old.replace("__", "/") in program
        program = program.replace(old.replace("__", "/"), new)
    return program


def run_program(program: str) -> str:
    """Run the program in its own interpreter and return its output."""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
