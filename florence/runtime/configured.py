"""The arguments of `Florence2.load` from settings. Knows nothing about what they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from florence.checkpoint.adapter_list import adapters_of_settings
from florence.model.devices import pick_device
from florence.readers.cores import default_readers
from florence.settings import Settings


def load_arguments(settings: Settings, device: str, workers: int, pdf_dpi: int) -> dict[str, Any]:
    """All arguments except the checkpoint's name. `workers`, `pdf_dpi`: as for `Florence2.from_settings`."""
    kind = pick_device(device).type
    usual = default_readers(on_gpu=kind == "cuda", workers=workers) if workers else 0
    return {
        "revision": settings.revision,
        "base": settings.base,
        "adapter": settings.adapter,
        "adapters": adapters_of_settings(settings.adapters, settings.adapters_file),
        "max_adapters": settings.max_adapters,
        "max_adapter_rank": settings.max_adapter_rank,
        "input_size": settings.input_size,
        "dtype": settings.dtype,
        "limits": replace(settings.image_limits, pdf_dpi=0 if workers else pdf_dpi),
        "config": settings.engine_config(kind, reserved=workers > 0),
        "readers": (settings.readers or usual) if workers else 0,
        "fast_jpeg": settings.fast_jpeg,
        "pictures": settings.pictures,
        "score_temperature": settings.score_temperature,
        "tasks": settings.tasks,
        "owner_share": settings.key_queue_share,
        "max_tiles": settings.max_tiles,
    }
