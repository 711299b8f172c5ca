"""How many requests a device has memory for, beside the weights.

Reckoned from the model's sizes before anything is allocated, so that a device with too little memory gives
one error that says what to change. Knows sizes only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from florence.engine.config import EngineConfig
from florence.errors import SettingsError
from florence.model.config import ModelConfig
from florence.types.bounds import MAX_BEAMS

log = logging.getLogger(__name__)

GIB = 2**30

RESERVE_BYTES = GIB
"""For what is not reckoned: libraries' workspaces, captured graphs, and fragmentation."""

ENCODE_SHARE, FEATURES_SHARE = 3, 16
"""Encodes get at most a third of the free memory, and the feature cache a sixteenth."""

STATE_BYTES = 36
"""Bytes of a search's state for each position of a beam."""

TOWER_COPIES = 4.5
"""Peak memory of a tower block, besides the two tensors of its feed-forward layer, in tensors of the block's
cells."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that an engine needs: `picture` for each picture that is being encoded; `fixed` for each
    request's slot, and `position` more for each token that the request may generate; `spare` for each such
    token, once in all, so that a request with the most beams always fits."""

    picture: int
    fixed: int
    position: int
    spare: int

    @classmethod
    def of(cls, model: ModelConfig, encoder_room: int, picture: tuple[int, int], itemsize: int) -> Needs:
        """For pictures of this height and width, and `encoder_room` positions for a picture and its
        prompt."""
        vision, text = model.vision, model.text
        beams = model.generation.num_beams
        key_and_value = 2 * text.decoder.layers * text.d_model * itemsize
        # A step's logits and their exponentials, then the scores of self-attention, two copies in float32.
        logits = 3 * 4 * beams * text.vocab_size
        scores = 2 * 4 * beams * text.decoder.heads * MAX_BEAMS
        cells = (picture[0] // 4) * (picture[1] // 4)
        widest = max(
            dim * cells // 4**stage * (TOWER_COPIES + 2 * vision.mlp_ratio)
            for stage, dim in enumerate(vision.dims)
        )
        return cls(
            picture=int(widest) * itemsize,
            fixed=key_and_value * encoder_room + logits,
            position=beams * key_and_value + scores + MAX_BEAMS * STATE_BYTES,
            spare=max(0, MAX_BEAMS - beams) * key_and_value,
        )

    def request(self, tokens: int) -> int:
        """Bytes of a request that may generate `tokens` tokens."""
        return self.fixed + tokens * self.position


def fit_memory(config: EngineConfig, needs: Needs, free: int | None) -> EngineConfig:
    """The configuration, with the batch, the encode batch and the feature cache reduced to what fits into
    `free` bytes. None: no limit.

    Raises `SettingsError` where not even one request fits.
    """
    if free is None:
        return config
    room = free - RESERVE_BYTES
    pictures = max(1, min(config.max_encode_batch, room // ENCODE_SHARE // needs.picture))
    features = min(config.picture_cache_bytes, max(0, room) // FEATURES_SHARE)
    left = room - pictures * needs.picture - features
    tokens = config.max_new_tokens
    requests = min(config.max_batch_size, (left - tokens * needs.spare) // needs.request(tokens))
    if requests < 1:
        raise SettingsError(_too_small(config, needs, free, left))
    if requests < config.max_batch_size or pictures < config.max_encode_batch:
        log.warning(
            "%.1f GiB of the device are free: room for %d requests in a step (max_batch_size is %d) "
            "and %d pictures in an encode (max_encode_batch is %d)",
            free / GIB, requests, config.max_batch_size, pictures, config.max_encode_batch,
        )  # fmt: skip
    return replace(config, max_batch_size=requests, max_encode_batch=pictures, picture_cache_bytes=features)


def _too_small(config: EngineConfig, needs: Needs, free: int, left: int) -> str:
    """The error's text: what is wrong, and the setting to change."""
    tokens = (left - needs.fixed) // (needs.position + needs.spare)
    advice = (
        f"set FLORENCE_MAX_NEW_TOKENS (max_new_tokens) to at most {tokens}, it is {config.max_new_tokens}"
        if tokens >= 1
        else "choose a smaller checkpoint with FLORENCE_MODEL or another device with FLORENCE_DEVICE"
    )
    spare = config.max_new_tokens * needs.spare
    needed = RESERVE_BYTES + needs.picture + spare + needs.request(config.max_new_tokens)
    return (
        f"the device has {free / GIB:.2f} GiB free beside the weights, "
        f"one request needs {needed / GIB:.2f} GiB; {advice}"
    )
