"""Metrics in Prometheus' text format under names that are not this project's: Triton's counters have no
`_total` at their end, which `prometheus_client` would add. Knows nothing about where values come from."""

from __future__ import annotations

from collections.abc import Mapping


def metric_text(name: str, text: str, values: Mapping[str, float], kind: str = "counter") -> str:
    """One metric's lines. `text`: its HELP line. `values`: by their labels, as the text format writes these.
    `kind`: its TYPE."""
    samples = "".join(f"{name}{{{labels}}} {value}\n" for labels, value in values.items())
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{samples}"
