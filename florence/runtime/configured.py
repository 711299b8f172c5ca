"""The options of `Florence2.load` from settings. Knows nothing about what they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from florence.checkpoint.adapter_list import adapters_of_settings
from florence.model.devices import pick_device
from florence.readers.cores import default_readers
from florence.runtime.load_options import LoadKeywords
from florence.settings import Settings


def keywords_of(settings: Settings, device: str, workers: int, pdf_dpi: int) -> dict[str, Any]:
    """`LoadKeywords` with all that the settings say. `device`, `workers`, `pdf_dpi`: as for
    `Florence2.from_settings`."""
    kind = pick_device(device).type
    usual = default_readers(on_gpu=kind == "cuda", workers=workers) if workers else 0
    same = LoadKeywords.__annotations__.keys() & Settings.model_fields.keys()
    return {name: getattr(settings, name) for name in same} | {
        "adapters": adapters_of_settings(settings.adapters, settings.adapters_file),
        "device": device,
        "limits": replace(settings.image_limits, pdf_dpi=0 if workers else pdf_dpi),
        "config": settings.engine_config(kind, reserved=workers > 0),
        "readers": (settings.readers or usual) if workers else 0,
        "owner_share": settings.key_queue_share,
    }
