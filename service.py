"""The Bento's entry: `bentoml serve` and `bentoml build` find `service` in here."""

from __future__ import annotations

from florence.server.service import service_of_environment

service = service_of_environment()
