"""The Compose file, the Kubernetes objects and the commands in the README's section on deploying."""

from __future__ import annotations

import re
from typing import Any

import yaml
from serving import ROOT


def compose() -> dict[str, Any]:
    """The Compose file."""
    (found,) = (document for document in _documents() if "services" in document)
    return found


def kubernetes() -> dict[str, dict[str, Any]]:
    """Kind -> the Kubernetes object of that kind."""
    return {document["kind"]: document for document in _documents() if "apiVersion" in document}


def health_command(url: str) -> list[str]:
    """The Compose file's health check, for a service at another address."""
    cmd, *words = compose()["services"]["florence"]["healthcheck"]["test"]
    assert cmd == "CMD"
    assert "http://127.0.0.1:8000" in words[-1]
    return [word.replace("http://127.0.0.1:8000", url) for word in words]


def _documents() -> list[dict[str, Any]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Deploy\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [document for block in blocks for document in yaml.safe_load_all(block)]
