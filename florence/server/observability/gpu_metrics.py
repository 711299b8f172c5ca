"""Metrics of the machine's GPUs, under Triton's names, where the driver reports them.

Knows the driver's library only. Each worker reports all GPUs that the driver shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from florence.server.observability.prometheus_text import metric_text


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric. `text`: its HELP line. `function`: the driver's function for it, called with a GPU's
    handle. `value`: takes the number from what that returns. `kind`: its TYPE."""

    name: str
    text: str
    function: str
    value: Callable[[Any], float]
    kind: str = "gauge"


def _milli(value: float) -> float:
    return value / 1000


READINGS: Final = (
    Reading("nv_gpu_utilization", "0 to 1", "nvmlDeviceGetUtilizationRates", lambda rates: rates.gpu / 100),
    Reading("nv_gpu_memory_total_bytes", "Memory", "nvmlDeviceGetMemoryInfo", attrgetter("total")),
    Reading("nv_gpu_memory_used_bytes", "Memory in use", "nvmlDeviceGetMemoryInfo", attrgetter("used")),
    Reading("nv_gpu_power_usage", "Watts", "nvmlDeviceGetPowerUsage", _milli),
    Reading("nv_gpu_power_limit", "Watts allowed", "nvmlDeviceGetEnforcedPowerLimit", _milli),
    Reading("nv_energy_consumption", "Joules", "nvmlDeviceGetTotalEnergyConsumption", _milli, "counter"),
)


def gpu_metrics() -> str:
    """The metrics in the text format."""
    import pynvml  # type: ignore[import-untyped]

    return "".join(gpu_lines(pynvml))


def gpu_lines(nvml: Any) -> Iterator[str]:
    """The metrics of all GPUs; none where there is no driver. `nvml`: the module `pynvml`, or a stand-in. A
    value that the driver does not report is left out."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return
    try:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        labels = [f'gpu_uuid="{_text(nvml.nvmlDeviceGetUUID(gpu))}"' for gpu in gpus]
        for reading in READINGS:
            values: dict[str, float] = {}
            for label, gpu in zip(labels, gpus, strict=True):
                try:
                    values[label] = reading.value(getattr(nvml, reading.function)(gpu))
                except nvml.NVMLError:
                    continue
            if values:
                yield metric_text(reading.name, reading.text, values, reading.kind)
    finally:
        nvml.nvmlShutdown()


def _text(uuid: str | bytes) -> str:
    return uuid.decode() if isinstance(uuid, bytes) else uuid
