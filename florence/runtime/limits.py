"""The settings' limits as what takes them: of pictures, and of batches and the queue."""

from __future__ import annotations

from florence.engine.scheduler import BatchLimits, TokenLimits, limits_for
from florence.images.decode import ImageLimits
from florence.settings import Settings


def image_limits(settings: Settings) -> ImageLimits:
    """What is accepted as a picture."""
    return ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_frames=settings.max_image_frames,
    )


def token_limits(settings: Settings) -> TokenLimits:
    """How long answers and prompts may be."""
    return TokenLimits(settings.max_new_tokens, settings.max_prompt_tokens)


def batch_limits(settings: Settings, device: str) -> BatchLimits:
    """Batches and queue; where the settings leave them open, as it suits this device ("auto", "cpu",
    "cuda:0")."""
    if device == "auto":
        from florence.model.devices import pick_device  # torch comes with it

        device = pick_device(device).type
    usual = limits_for(device.partition(":")[0])
    latency_ms = settings.max_latency_ms
    return BatchLimits(
        max_batch_size=settings.max_batch_size or usual.max_batch_size,
        max_encode_batch=settings.max_encode_batch or usual.max_encode_batch,
        max_queue=settings.max_queue,
        max_latency_s=None if latency_ms is None else latency_ms / 1000,
        encode_budget_s=settings.encode_budget_ms / 1000,
    )
