"""The models of one service by name, as the v2 protocol looks them up and lists them. No transport."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from florence.errors import NotFound, ProtocolError
from florence.server.v2.inference import Inference
from florence.server.v2.model import parse_version


class ModelRepository:
    """The models that the v2 routes and the gRPC server answer for."""

    def __init__(self, models: Iterable[Inference]) -> None:
        self._models = {inference.served.name: inference for inference in models}

    @property
    def models(self) -> Iterable[Inference]:
        """All models."""
        return self._models.values()

    @property
    def ready(self) -> bool:
        """Whether every model takes requests, as Triton defines a ready server."""
        return all(inference.ready for inference in self.models)

    def get(self, name: str) -> Inference | None:
        """The model of that name, in any version; None for an unknown one."""
        return self._models.get(name)

    def find(self, name: str, version: str = "") -> Inference:
        """The model of that name and version; version: decimal digits, "" for the latest.

        Raises NotFound for an unknown model or version, ProtocolError for a version that is no number.
        """
        if version:
            parse_version(version)
        inference = self.get(name)
        if inference is None:
            raise NotFound(f"Request for unknown model: '{name[:200]}' is not found")
        inference.served.check_version(version)
        return inference

    def index(self, *, only_ready: bool) -> list[dict[str, Any]]:
        """The models with their states; with `only_ready`, those that take requests."""
        return [
            {
                "name": inference.served.name,
                "version": inference.served.version,
                "state": "READY" if inference.ready else "LOADING",
            }
            for inference in self.models
            if inference.ready or not only_ready
        ]

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Triton's statistics of one model, or of all where no name is given.

        Raises ProtocolError, as Triton words it for statistics, for an unknown model or version.
        """
        if name not in ("", *self._models):
            raise ProtocolError(f"requested model '{name[:200]}' is not available")
        chosen = [self._models[name]] if name else list(self.models)
        for inference in chosen:
            try:
                inference.served.check_version(version)
            except NotFound:
                raise ProtocolError(
                    f"requested model version is not available for model '{inference.served.name}'"
                ) from None
        return {"model_stats": [inference.statistics.as_dict() for inference in chosen]}
