"""Processes for untrusted bytes: their environment and their limits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from florence.images.isolated import environment


def test_no_secret_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process gets only the variables of the system and the C library."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    passed = environment()
    assert passed["LC_ALL"] == "C.UTF-8"
    assert "secret" not in passed.values()


@pytest.mark.parametrize(("hard", "wanted", "soft"), [(50, 20, 20), (20, 50, 20)])
def test_a_lower_hard_limit_stays(hard: int, wanted: int, soft: int) -> None:
    """A limit above the system's hard limit is no error: the process has the lower one."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({hard}, {hard}))\n"
        f"from florence.images.isolated import limit; limit(core=0, cpu={wanted})\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"({soft}, {hard}) 0"
