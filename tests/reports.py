"""An engine's report about a request."""

from __future__ import annotations

from contextvars import copy_context

from florence.engine.observer import FinishReason, RequestReport


def report() -> RequestReport:
    """The report about a request that was submitted here and answered."""
    return RequestReport(
        "caption", FinishReason.STOP, "alice", 3, 7, (640, 480), 1000.0,
        0.25, 0.5, 1.0, 2.0, 4.0, copy_context(),
    )  # fmt: skip
