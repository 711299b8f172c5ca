"""Fixtures that several test modules use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from goldens import Goldens


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models run faster, and sums come out the same everywhere, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, protocol facts and photographs beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder is not here")
    return folder


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Goldens:
    """What Microsoft's own code gave on the small random checkpoint."""
    return Goldens(shared / "goldens" / "A")
