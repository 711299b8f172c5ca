"""The costs of work on a card: the one table of costs, each with its source. Only measurements change it.

Knows seconds, bytes and FLOP; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

SMALL_KERNEL_S = 2.0e-6
"""Seconds of a small kernel in a graph. The audit of this path assumed 1.6 to 2.4 microseconds."""

EAGER_LAUNCH_S = 8.8e-6
"""Seconds of the host to launch a kernel outside a graph. The audit: 0.15 ms for 17 fills."""

HOST_COPY = 25e9
"""Bytes per second from page-locked host memory to a card. Assumed: the usable part of PCIe 4.0 x16's 32
GB/s."""

BEST_PRODUCT = 0.80
"""The share of a card's published rate that the best large product reaches: 790 of an H100's 989 TFLOP/s,
measured on random bfloat16 numbers. It gives the floor of an encode."""

BANDWIDTH_SHARE = 2.9 / 3.35
"""The usable share of the published bandwidth: the audit's 2.9 TB/s of an H100. A copy measured 3.0 TB/s."""

PRODUCT_SHARE = 560 / 989.4
"""The usable share of the published rate: 560 TFLOP/s of an H100, the audit's mean over a tower's
products."""


OWN_PRODUCT = 0.90
"""The share of the libraries' rate that a large product in Triton reaches. Triton's tutorial and cuBLAS on an
H100, both multiplying 3,072 x 3,072: 525 and 585 TFLOP/s (triton-lang/triton, issue 3672)."""

FP8_SHARE = PRODUCT_SHARE
"""The usable share of the published fp8 rate. Assumed: that of 16-bit products; sums are in float32, which is
slower on some cards."""

SHARED = 0.15
"""The least slowdown of a step and an encode that run concurrently, even if they need different resources:
the audit's guess."""


AUDITED: Mapping[str, int] = MappingProxyType(
    {
        "CAPTION": 250,
        "DETAILED_CAPTION": 235,
        "MORE_DETAILED_CAPTION": 199,
        "CAPTION_TO_PHRASE_GROUNDING": 237,
        "OD": 153,
        "DENSE_REGION_CAPTION": 129,
        "REGION_PROPOSAL": 174,
        "OCR": 246,
        "OCR_WITH_REGION": 229,
    }
)
"""Answers per second that the audit estimated for an H100 with concurrent encodes, 30 requests and different
pictures; its steps were longer than the steps counted now."""


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares of a card's published bandwidth and product rate that a class of kernels reaches."""

    bandwidth: float
    products: float


CLASSES: Mapping[str, Shares] = MappingProxyType(
    {
        "product": Shares(BANDWIDTH_SHARE, PRODUCT_SHARE),
        "fp8 product": Shares(BANDWIDTH_SHARE, FP8_SHARE),
        "memory": Shares(BANDWIDTH_SHARE, PRODUCT_SHARE),  # element by element, copies, reductions
        "own": Shares(BANDWIDTH_SHARE, PRODUCT_SHARE),  # a kernel of the project without another class
        "own product": Shares(BANDWIDTH_SHARE, OWN_PRODUCT * PRODUCT_SHARE),
        "depthwise": Shares(0.55 * BANDWIDTH_SHARE, PRODUCT_SHARE),
        "batched product": Shares(0.60 * BANDWIDTH_SHARE, PRODUCT_SHARE),  # skinny ones
        "attention, head of 32": Shares(BANDWIDTH_SHARE, 180 / 989.4),
        "attention": Shares(BANDWIDTH_SHARE, 350 / 989.4),
        "attention, few queries": Shares(2.0 / 3.35, 350 / 989.4),  # a tile of 128 rows for three queries
    }
)
"""The audit's class factors: depthwise convolutions 55% of the bandwidth, skinny batched products 60%,
attention of small heads 180 to 350 TFLOP/s, and 2.0 TB/s where it has fewer queries than its tile."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card's published peaks: bytes per second, and dense 16-bit FLOP per second summed in float32. `fp8`:
    the rate of fp8 products, 0 if the card has none."""

    name: str
    bandwidth: float
    products: float
    source: str
    fp8: float = 0.0

    def seconds(self, kind: str, kernels: int, moved: float, flop: float) -> float:
        """Estimated time of one operation of a class: the longest of launches, memory and products."""
        shares, rate = CLASSES[kind], self.fp8 if kind == "fp8 product" else self.products
        return max(
            kernels * SMALL_KERNEL_S,
            moved / (self.bandwidth * shares.bandwidth),
            flop / (rate * shares.products) if flop else 0.0,
        )

    def floor_s(self, needed: float, flop: float, fp8_flop: float = 0.0) -> float:
        """The least time for these bytes and FLOP, and others in fp8, at the rates of a copy and of the best
        product."""
        products = flop / self.products + (fp8_flop / self.fp8 if fp8_flop else 0.0)
        return max(needed / (self.bandwidth * BANDWIDTH_SHARE), products / BEST_PRODUCT)


CARDS: Mapping[str, Card] = MappingProxyType(
    {
        "h100": Card("H100 SXM 80 GB", 3.35e12, 989.4e12, "NVIDIA's H100 datasheet", 1978.9e12),
        "a100": Card("A100 SXM 80 GB", 2.039e12, 312e12, "NVIDIA's A100 datasheet"),
        "l4": Card("L4 24 GB", 0.300e12, 121e12, "NVIDIA's L4 datasheet: 242 TFLOP/s with sparsity", 242e12),
        "4090": Card("RTX 4090 24 GB", 1.008e12, 165.2e12, "NVIDIA's Ada architecture paper", 330.3e12),
    }
)


def whole_peaks(card: Card) -> Card:
    """The same card, with copies and products at its full published peaks."""
    return replace(card, bandwidth=card.bandwidth / BANDWIDTH_SHARE, products=card.products / PRODUCT_SHARE)


TIMM_TOWER = 59.0
"""Pictures a second of `davit_huge_fl` at 768 x 768 on an RTX 4090, as timm publishes it (`results/` of
huggingface/pytorch-image-models): the measured rate with which the estimate is compared."""

TOLERANCE = 0.25
"""The allowed relative difference of the estimated tower from timm's; a larger one is printed as a miss."""
