"""The service with a fake model, for `bentoml serve`; FLORENCE_MODEL says as JSON how the fake behaves."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from fake_model import load_fake

import service as real
from florence.settings import read_settings

service = real.build_service(read_settings(), 0, load_fake, lambda settings: None)
