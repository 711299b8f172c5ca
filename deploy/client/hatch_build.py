"""What the client's wheel holds of the package beside it; an editable installation holds none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path(__file__).resolve().parents[2] / "florence"
PARTS = (
    "__init__.py", "py.typed", "errors.py", "answers", "bulk", "cli", "client", "evaluation", "export",
    "images", "mcp", "types",
)  # fmt: skip


class ClientHook(BuildHookInterface[Any]):
    """Adds the client's rooms to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"] |= {str(PACKAGE / part): f"florence/{part}" for part in PARTS}
