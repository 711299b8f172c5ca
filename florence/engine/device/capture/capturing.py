"""What a device prepares before the first request: its attention, and all captured steps and encodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.buckets import Buckets
from florence.engine.device.encode.encodes import BucketEncodes, Encodes
from florence.engine.device.steps import Steps
from florence.errors import SettingsError
from florence.model.florence2 import Florence2Model
from florence.model.fused_attention import pin_attention, trials_of

log = logging.getLogger(__name__)


def capture_all(steps: Steps, encodes: Encodes, picture_size: tuple[int, int] | None) -> None:
    """Capture every shape; largest first, since all share one memory pool. `picture_size`: height and width
    of pictures, None to capture no encodes. Steps without requests may leave NaN in the caches."""
    started, graphs = time.monotonic(), list[bool]()
    if isinstance(encodes, BucketEncodes) and picture_size is not None:
        graphs += encodes.prepare(*picture_size)
    if isinstance(steps, BucketSteps):
        graphs += steps.prepare()
    seconds = time.monotonic() - started
    log.info("captured %d of %d steps and encodes in %.1f s", sum(graphs), len(graphs), seconds)


def try_attentions(model: Florence2Model, buckets: Buckets, encoder_room: int) -> None:
    """Choose PyTorch's attention by trying it in all shapes of steps and encodes (`pin_attention`)."""
    shapes = [key.shape for key in buckets.steps]
    trials = trials_of(
        model.config,
        encoder_lengths=sorted({shape.encoder_length for shape in shapes}),
        encoder_room=encoder_room,
        beams=sorted({shape.beams for shape in shapes}),
        device=model.device,
        dtype=model.dtype,
    )
    pin_attention(trials)


@contextmanager
def memory_errors(slots: int, pictures: int) -> Iterator[None]:
    """Turns an out-of-memory error of the device into one that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"the device has too little memory for {slots} requests in a step and {pictures} pictures in an "
            "encode: lower FLORENCE_MAX_BATCH_SIZE (max_batch_size) or FLORENCE_MAX_ENCODE_BATCH "
            "(max_encode_batch)"
        ) from error
