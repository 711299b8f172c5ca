"""Estimates of encodes beside steps: both share the card, and the service's own policy decides."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
from serving import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from ledger.beside import slowdown
from ledger.costs import CARDS, CLASSES, SHARED, SMALL_KERNEL_S, Card
from ledger.counting import Ledger, Operation
from ledger.rows import closed_loop

H100 = CARDS["h100"]
LEAST = 1 + SHARED


def busy(card: Card, memory: float, products: float, kind: str = "memory") -> Ledger:
    """One operation that uses memory and products for these shares of its time; one of the shares is 1."""
    shares = CLASSES[kind]
    moved = memory * card.bandwidth * shares.bandwidth
    return Ledger([Operation("work", kind, 1, moved, 0.0, products * card.products * shares.products)])


@pytest.mark.parametrize(
    ("mine", "its", "expected"),
    [
        ((1, 0), (0, 1), LEAST),
        ((1, 0), (1, 0), 2.0),
        ((0, 1), (0.2, 1), 2.0),
        ((0.3, 1), (1, 0.05), 1.3),
        ((0.1, 1), (1, 0), LEAST),
    ],
)
def test_two_kernels_share_what_both_need(mine: Any, its: Any, expected: float) -> None:
    """The slowdown is the sum of what both need of one resource, and at least the audit's guess."""
    one, other = busy(H100, *mine), busy(H100, *its)
    assert slowdown(H100, one, other) == pytest.approx(expected)
    assert slowdown(H100, other, one) == pytest.approx(expected)


def test_a_slowdown_is_a_mean_of_pairs_and_launches_take_nothing() -> None:
    """The slowdown of random work lies between the minimum and 2; kernels that only launch give the
    minimum."""
    dice = random.Random(0)
    for _ in range(20):
        work = [
            Ledger(
                [
                    Operation("work", kind, 1, dice.random() * 1e9, 0.0, dice.random() * 1e12)
                    for kind in dice.choices([kind for kind in CLASSES if kind != "fp8 product"], k=9)
                ]
            )
            for _ in range(2)
        ]
        assert LEAST <= slowdown(H100, *work) <= 2 + 1e-9
    launches = Ledger([Operation("small", "memory", 1, 0.0)] * 5)
    assert slowdown(H100, launches, busy(H100, 1, 1)) == pytest.approx(LEAST)
    half = [*busy(H100, 1, 0).operations, Operation("small", "memory", round(1 / SMALL_KERNEL_S), 0.0)]
    assert slowdown(H100, Ledger(half), busy(H100, 1, 0)) == pytest.approx((2 + LEAST) / 2)


@pytest.mark.parametrize("concurrency", [1, 30, 64])
def test_encodes_beside_steps_hide_what_the_slowdown_leaves(concurrency: int) -> None:
    """Encodes or steps alone keep their rate. Where both take equally long, the rate falls with the
    slowdown, and at a factor of 2 nothing is gained."""
    step: Any = lambda *_: 1e-3  # noqa: E731
    encoding = closed_loop(
        concurrency, 20, lambda requests: (5e-3 * requests, 0.0), lambda *_: 0.0, lambda *_: LEAST
    )
    assert encoding.rate == pytest.approx(200.0, rel=0.1)
    decoding = closed_loop(concurrency, 20, lambda requests: (0.0, 0.0), step, lambda *_: LEAST)
    assert decoding.rate == pytest.approx(concurrency / 21e-3, rel=0.25)  # they join at the next step
    times: Any = lambda requests: (21e-3 / concurrency * requests, 0.0), step
    one = closed_loop(concurrency, 20, *times)
    rates = [closed_loop(concurrency, 20, *times, lambda *_, f=factor: f).rate for factor in (1.15, 1.5, 2)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= concurrency / 21e-3
    if concurrency > 1:  # a single request waits for its own encode
        assert rates[0] > 1.15 * one.rate
        assert rates[-1] <= one.rate
