"""The Bento's entry: `bentoml serve` and `bentoml build` find `service` in here."""

from __future__ import annotations

from florence.server.entry import service

__all__ = ["service"]
