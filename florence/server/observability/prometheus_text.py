"""Metrics in Prometheus' text format under names that are not this project's: Triton's counters have no
`_total` at their end, which `prometheus_client` would add. Knows nothing about where values come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lines:
    """One metric. `text`: its HELP line. `values`: by their labels, as the text format writes these. `kind`:
    its TYPE."""

    name: str
    text: str
    values: Mapping[str, float]
    kind: str = "counter"

    def __str__(self) -> str:
        samples = "".join(f"{self.name}{{{labels}}} {value}\n" for labels, value in self.values.items())
        return f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}\n{samples}"
