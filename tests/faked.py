"""The service with a fake model; FLORENCE_MODEL describes the fake as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bentoml
from fake_model import Call, FakeModel, load_fake

from florence.answers.answer import Answer
from florence.engine.observer import Observer
from florence.errors import EngineError
from florence.server import service as real
from florence.server.supervisor import end_worker
from florence.settings import Settings, read_settings


@dataclass
class BreakingModel(FakeModel):
    """A fake model whose device breaks at the first request."""

    def _answer(self, call: Call) -> Answer:
        """End the worker as a broken device does."""
        end_worker()
        raise EngineError("the device is gone")


def load(settings: Settings, device: str, observer: Observer) -> FakeModel:
    """A fake model; for `"breaks"`, one whose device breaks."""
    return BreakingModel() if settings.model == "breaks" else load_fake(settings, device, observer)


def fake_service() -> Any:
    """Build the service for the settings in BentoML's arguments and in the environment."""
    return real.build_service(read_settings(bentoml.use_arguments), 0, load, lambda settings: None)
