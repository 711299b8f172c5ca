"""The service with a fake model, as `bentoml serve` imports it; see `faked`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from florence.server.garbage import importing

with importing():
    from faked import fake_service

    service = fake_service()
