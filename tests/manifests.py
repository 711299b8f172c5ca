"""The files in deploy/: merged Compose files, rendered Kubernetes overlays, and the adapter's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from serving import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = DEPLOY / "kubernetes" / "overlays"
OVERLAY_NAMES = tuple(sorted(path.name for path in OVERLAYS.iterdir()))


def compose(*, gpu: bool = False) -> dict[str, Any]:
    """The Compose file, with `gpu` merged with the one for GPUs."""
    document = _read(DEPLOY / "compose.yaml")
    return _merge(document, _read(DEPLOY / "compose.gpu.yaml")) if gpu else document


def kubernetes(overlay: str) -> dict[str, dict[str, Any]]:
    """Kind -> the Kubernetes object of that kind in this overlay."""
    return _render(OVERLAYS / overlay)


def adapter_rules() -> list[dict[str, Any]]:
    """The rules for prometheus-adapter."""
    return list(_read(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")["rules"]["custom"])


def health_command(url: str) -> list[str]:
    """The Compose file's health check, for a service at another address."""
    cmd, *words = compose()["services"]["florence"]["healthcheck"]["test"]
    assert cmd == "CMD"
    assert "http://127.0.0.1:8000" in words[-1]
    return [word.replace("http://127.0.0.1:8000", url) for word in words]


def _read(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def _render(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects that `kubectl kustomize` prints for a folder: bases and resources with the patches merged
    in."""
    plan = _read(folder / "kustomization.yaml")
    assert set(plan) <= {"apiVersion", "kind", "bases", "resources", "patchesStrategicMerge"}
    objects: dict[str, dict[str, Any]] = {}
    for base in plan.get("bases", []):
        objects |= _render(folder / base)
    for name in plan.get("resources", []):
        document = _read(folder / name)
        assert document["kind"] not in objects
        objects[document["kind"]] = document
    for name in plan.get("patchesStrategicMerge", []):
        patch = _read(folder / name)
        objects[patch["kind"]] = _merge(objects[patch["kind"]], patch)
    return objects


def _merge(value: Any, patch: Any) -> Any:
    """A strategic merge: mappings key by key, lists of named items by name, everything else replaced."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return value | {name: _merge(value.get(name), part) for name, part in patch.items()}
    if _is_named(value) and _is_named(patch):
        named = {item["name"]: item for item in value}
        changed = {item["name"]: _merge(named.get(item["name"]), item) for item in patch}
        return list((named | changed).values())
    return patch


def _is_named(value: Any) -> bool:
    """True for a list of items with names."""
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)
