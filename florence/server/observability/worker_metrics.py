"""The metrics of one worker, put together: its engine's with BentoML's labels, and those with Triton's names.

Knows where each comes from; nothing about HTTP.
"""

from __future__ import annotations

import functools

import bentoml

from florence.server.observability.gpu_metrics import gpu_lines
from florence.server.observability.metrics import EngineMetrics
from florence.server.observability.tracing import bentoml_tracing, trace_request
from florence.server.v2.statistics import Statistics


def engine_metrics() -> EngineMetrics:
    """An observer of this worker's engine: metrics with the labels of BentoML's own batches, and spans of
    requests."""
    context = bentoml.server_context
    return EngineMetrics(
        {
            "runner_name": "florence2",
            "worker_index": str(context.worker_index or 1),
            "service_version": context.bento_version,
            "service_name": context.bento_name,
        },
        functools.partial(trace_request, provider=bentoml_tracing()),
    )


def triton_metrics(statistics: Statistics) -> str:
    """The metrics that have Triton's names, in the text format: of v2 requests and of the GPUs."""
    import pynvml  # type: ignore[import-untyped]

    return statistics.as_metrics() + "".join(map(str, gpu_lines(pynvml)))
