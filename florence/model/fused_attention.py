"""Chooses which of PyTorch's fused attentions a GPU uses: once, by trying them on the model's own shapes.

By default PyTorch chooses by card, version and shape, may build a plan for each shape while serving, and
raises where the chosen library finds none; masks with unaligned rows have given wrong values (pytorch issues
140930, 138529, 191937). This module keeps, for the whole process, the first order of preference with which
all shapes agree with float32. No order includes cuDNN's: it builds a plan for each shape, which takes
hundreds of milliseconds. Knows sizes and tensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from florence.errors import EngineError
from florence.model.config import ModelConfig
from florence.model.kernels.plain import additive_mask

log = logging.getLogger(__name__)

FLASH, EFFICIENT, MATH = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
ORDERS: tuple[tuple[SDPBackend, ...], ...] = (
    (FLASH, EFFICIENT, MATH),  # flash takes no masks
    (EFFICIENT, MATH),
    (FLASH, MATH),
    (MATH,),
)
"""Orders of preference; the last one is slow, but works everywhere."""

WINDOWS, REQUESTS = 64, 4
"""Windows and requests of a trial: enough for more than one thread block."""

FLOAT32_TOLERANCE = 1e-4
"""Tolerance relative to the largest value; in half precision it is four times the dtype's epsilon."""


@dataclass(frozen=True, slots=True)
class BackendTrial:
    """Inputs of one attention call, in the model's memory layout. `mask`: added to scores, None for none."""

    name: str
    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None = None

    def attend(self) -> Tensor:
        """Call attention as the model does."""
        return F.scaled_dot_product_attention(self.queries, self.keys, self.values, attn_mask=self.mask)

    def error(self, result: Tensor) -> float:
        """The largest difference from float32, in units of the tolerance; NaN counts as above it."""
        queries, keys, values = (each.float() for each in (self.queries, self.keys, self.values))
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        if self.mask is not None:
            scores = scores + self.mask.float()
        expected = scores.softmax(-1) @ values
        tolerance = max(FLOAT32_TOLERANCE, 4 * torch.finfo(self.queries.dtype).eps) * expected.abs().max()
        return float(((result.float() - expected).abs().max() / tolerance).nan_to_num(torch.inf))


def trials_of(
    config: ModelConfig,
    encoder_lengths: Sequence[int],
    encoder_room: int,
    beams: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[BackendTrial]:
    """One trial for each kind of attention that a model of these sizes computes by PyTorch's function: the
    windows of each stage; the text encoder and the decoder's cross-attention for each encoder length and
    number of beams. `encoder_room`: positions of a slot of the caches."""
    vision, text = config.vision, config.text

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def split(cells: int, length: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = normal(cells, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        return queries, keys, values

    for stage, (dim, heads) in enumerate(zip(vision.dims, vision.heads, strict=True)):
        yield BackendTrial(
            f"windows of stage {stage + 1}", *split(WINDOWS, vision.window**2, heads, dim // heads)
        )
    for length in encoder_lengths:
        lengths = length - 7 * torch.arange(REQUESTS, device=device)
        seen = torch.arange(length, device=device) < lengths[:, None]
        mask = additive_mask(seen, dtype)[:, None, None]  # [requests, 1, 1, length]
        heads, width = text.encoder.heads, text.d_model // text.encoder.heads
        yield BackendTrial(f"encoder of {length}", *split(REQUESTS, length, heads, width), mask)
        heads, width = text.decoder.heads, text.decoder_head_dim
        keys, values = normal(2, REQUESTS, heads, encoder_room, width)[:, :, :, :length]
        for count in beams:
            queries = normal(REQUESTS, count, heads, width).transpose(1, 2)
            yield BackendTrial(f"{count} beams over {length}", queries, keys, values, mask)


def pin_attention(
    trials: Iterator[BackendTrial], orders: Sequence[Sequence[SDPBackend]] = ORDERS
) -> Sequence[SDPBackend]:
    """Let the process use the first of `orders` with which all trials agree with float32, and log which one.

    Raises `EngineError` where there is none: then the device's results are wrong.
    """
    tried = list(trials)
    for order in orders:
        with sdpa_kernel(list(order), set_priority=True):
            failure = _failure(tried)
        if failure is None:
            _enable(order)
            failure = _failure(tried)  # again, with the settings of the whole process
        if failure is None:
            names = ", ".join(backend.name.lower() for backend in order)
            log.info("attention by the first that takes its inputs of %s; %d shapes agree", names, len(tried))
            return order
        log.warning("attention by %s is not used: %s", [backend.name for backend in order], failure)
    raise EngineError("no attention of this device agrees with float32; see the log")


def _failure(trials: Sequence[BackendTrial]) -> str | None:
    """What is wrong with attention under the current settings; None if nothing is."""
    for trial in trials:
        try:
            error = trial.error(trial.attend())
        except RuntimeError as raised:
            return f"{trial.name}: {raised}"
        if error > 1:
            return f"{trial.name}: {error:.3g} times the tolerance from float32"
    return None


def _enable(order: Sequence[SDPBackend]) -> None:
    """Allow only these for the whole process; PyTorch itself prefers them in the order of `ORDERS`."""
    switches: tuple[tuple[SDPBackend, Callable[[bool], None]], ...] = (
        (FLASH, torch.backends.cuda.enable_flash_sdp),
        (EFFICIENT, torch.backends.cuda.enable_mem_efficient_sdp),
        (MATH, torch.backends.cuda.enable_math_sdp),
        (SDPBackend.CUDNN_ATTENTION, torch.backends.cuda.enable_cudnn_sdp),
    )
    for backend, switch in switches:
        switch(backend in order)
