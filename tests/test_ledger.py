"""The GPU ledger counts dispatched operations by a rule for each kind, and computes its estimates from
them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from serving import ROOT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the path in PyTorch's documentation

sys.path.insert(0, str(ROOT / "benchmarks"))

from ledger.costs import CARDS, CLASSES, SMALL_KERNEL_S
from ledger.counting import Counting, Ledger
from ledger.fakes import FakeEngine, Shape, fakes
from ledger.own import Load, OwnKernel, rules_of
from ledger.rows import closed_loop

ROWS, COLUMNS = 64, 256
SIZE = 2 * ROWS * COLUMNS  # bytes of a matrix in bfloat16


@pytest.fixture
def fake() -> Iterator[Callable[..., Tensor]]:
    """A function that makes tensors of a GPU that doesn't exist."""
    with FakeTensorMode(), torch.no_grad():
        yield lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="cuda")


def count(work: Callable[[], Any], rules: Any = None) -> Ledger:
    """A ledger of the operations that this work dispatches."""
    ledger = Ledger()
    with Counting(ledger, rules):
        work()
    return ledger


@pytest.mark.parametrize(
    ("work", "kernels", "moved"),
    [
        (lambda x: x.view(-1)[3:].view(1, -1).transpose(0, 1), 0, 0),
        (lambda x: x + x, 1, 3 * SIZE),
        (lambda x: x + x[:1].expand(ROWS, -1), 1, 2 * SIZE + SIZE / ROWS),
        (lambda x: x.reshape(COLUMNS, ROWS), 0, 0),
        (lambda x: x.t().reshape(-1), 1, 2 * SIZE),
        (lambda x: x.float(), 1, 3 * SIZE),
        (lambda x: x.to(torch.bfloat16), 0, 0),
        (lambda x: x.fill_(1.0), 1, SIZE),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: torch.zeros_like(x), 1, SIZE),
        (lambda x: x.copy_(x), 1, 2 * SIZE),
        (F.gelu, 1, 2 * SIZE),
    ],
)
def test_kernels_and_bytes_of_plain_operations(fake: Any, work: Any, kernels: int, moved: float) -> None:
    """A view launches no kernel; an expanded tensor is read once."""
    values = fake(ROWS, COLUMNS)
    found = count(lambda: work(values))
    assert (found.kernels, found.moved) == (kernels, moved)


def test_a_gather_moves_what_it_takes_and_not_its_table(fake: Any) -> None:
    """A gather from a large table, or a scatter into one, moves only the chosen rows."""
    table, places = fake(100_000, COLUMNS), fake(ROWS, dtype=torch.int64)
    taken = 2 * SIZE + 8 * ROWS
    assert count(lambda: table[places]).moved == taken
    assert count(lambda: F.embedding(places, table)).moved == taken
    rows = fake(ROWS, COLUMNS)
    assert count(lambda: table.index_put_((places,), rows)).moved == taken


def test_products_have_flop_and_bias_of_a_convolution_is_a_second_kernel(fake: Any) -> None:
    """A product has 2 m n k FLOP; a depthwise convolution is its own class, and its bias a second kernel."""
    left, right = fake(ROWS, COLUMNS), fake(COLUMNS, ROWS)
    found = count(lambda: left @ right)
    assert (found.flop, found.operations[0].kind) == (2 * ROWS * ROWS * COLUMNS, "product")
    pixels, filters, bias = fake(1, 32, 8, 8), fake(32, 1, 3, 3), fake(32)
    found = count(lambda: F.conv2d(pixels, filters, bias, padding=1, groups=32))
    assert (found.kernels, found.operations[0].kind) == (2, "depthwise")
    assert count(lambda: F.conv2d(pixels, filters, padding=1, groups=32)).kernels == 1


def test_a_product_may_add_to_what_it_overwrites(fake: Any) -> None:
    """`addmm_` is one kernel, which reads and writes its result once and has the FLOP of any product."""
    left, right, total = fake(ROWS, COLUMNS), fake(COLUMNS, ROWS), fake(ROWS, ROWS)
    found = count(lambda: total.addmm_(left, right))
    assert (found.kernels, found.flop) == (1, 2 * ROWS * ROWS * COLUMNS)
    assert (found.moved, found.operations[0].kind) == (2 * SIZE + 2 * (2 * ROWS * ROWS), "product")


def test_a_convolution_s_result_lies_as_its_input(fake: Any) -> None:
    """A convolution keeps the channels-last layout, so nothing after it copies its result."""
    pixels = fake(1, 8, 8, 32).permute(0, 3, 1, 2)
    filters = fake(16, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    found = count(lambda: F.conv2d(pixels, filters).permute(0, 2, 3, 1).contiguous())
    assert [each.name for each in found.operations] == ["convolution"]


def test_attention_is_one_kernel_and_a_mask_of_truth_values_three_more(fake: Any) -> None:
    """Attention is one kernel, a boolean mask adds three; with few queries its tiles compute more than was
    asked for."""
    queries, keys = fake(2, 4, 3, 64), fake(2, 4, 100, 64)
    mask = fake(2, 1, 1, 100, dtype=torch.bool)
    plain = count(lambda: F.scaled_dot_product_attention(queries, keys, keys))
    assert plain.kernels == 1
    assert plain.flop == 2 * 2 * (2 * 4 * 3 * 100 * 64)
    assert plain.operations[0].worked == 2 * 2 * (2 * 4 * 128 * 128 * 64)
    assert count(lambda: F.scaled_dot_product_attention(queries, keys, keys, mask)).kernels == 4


def test_a_kernel_of_our_own_is_one_kernel_with_its_own_cost(fake: Any) -> None:
    """An own kernel counts as one kernel with its declared cost, or else with the bytes of its arguments."""
    name = "florence_test_ledger::halve"
    if not hasattr(torch.ops, "florence_test_ledger") or not hasattr(torch.ops.florence_test_ledger, "halve"):
        operation = torch.library.custom_op(
            name, lambda values: values / 2, mutates_args=(), schema="(Tensor values) -> Tensor"
        )
        operation.register_fake(torch.empty_like)
    values = fake(ROWS, COLUMNS)
    work = lambda: torch.ops.florence_test_ledger.halve(values)  # noqa: E731
    found = count(work)
    assert (found.kernels, found.moved) == (1, 2 * SIZE)

    halve = OwnKernel(name, lambda load, values: (load.length * len(values), 7.0, 9.0), "own product")
    found = count(work, rules_of([halve], Load(1, 3, 589, 96)))
    assert (found.kernels, found.moved, found.flop) == (1, 96 * ROWS, 7.0)
    assert (found.operations[0].kind, found.operations[0].worked) == ("own product", 9.0)


def test_an_operation_takes_the_longest_of_launch_memory_and_products() -> None:
    """An operation takes the longest of launch, memory and products, on every card and for every class."""
    for card in CARDS.values():
        for kind, shares in CLASSES.items():
            assert card.seconds(kind, 3, 0, 0) == 3 * SMALL_KERNEL_S
            assert card.seconds(kind, 1, 1e12, 0) == 1e12 / (card.bandwidth * shares.bandwidth)
            rate = card.fp8 if kind == "fp8 product" else card.products
            if rate:  # an A100 has none in fp8
                assert card.seconds(kind, 1, 0, 1e18) == 1e18 / (rate * shares.products)
            assert card.floor_s(1e9, 0) <= card.seconds(kind, 1, 1e9, 0)


@pytest.mark.parametrize("concurrency", [1, 30, 64])
def test_a_closed_loop_is_as_fast_as_its_parts(concurrency: int) -> None:
    """With free encodes the rate follows from the steps, plus one since answers come late; with free steps
    it follows from the encodes. Host work that runs beside the device costs nothing."""
    decoding = closed_loop(concurrency, 20, lambda requests: (0.0, 0.0), lambda *_: 1e-3)
    assert decoding.rate == pytest.approx(concurrency / 21e-3, rel=0.1)
    encoding = closed_loop(concurrency, 20, lambda requests: (5e-3 * requests, 0.0), lambda *_: 0.0)
    assert encoding.rate == pytest.approx(200.0, rel=0.1)
    both = closed_loop(concurrency, 20, lambda requests: (5e-3 * requests, 0.0), lambda *_: 1e-3)
    hidden = closed_loop(concurrency, 20, lambda requests: (5e-3 * requests, 9e-4), lambda *_: 1e-3)
    longer = closed_loop(concurrency, 20, lambda requests: (5e-3 * requests, 9e-3), lambda *_: 1e-3)
    assert both.rate == pytest.approx(hidden.rate, rel=1e-2)
    assert longer.rate < both.rate
    assert both.rate <= 1 / (5e-3 + 21e-3 / concurrency) * 1.001
    assert both.p50 <= both.p99


@pytest.mark.slow
def test_fp8_is_counted_as_what_it_is() -> None:
    """Each fp8 product has a kernel that quantizes its rows; other products stay, and the FLOP are the
    same."""
    with fakes():
        plain, low = (FakeEngine(Shape("tiny", slots=4, fp8=fp8)).encode(2) for fp8 in (False, True))
    names = [sum((graph.by_name() for graph in each.graphs), Counter()) for each in (plain, low)]
    products = names[1]["_scaled_mm"]
    assert products == names[1]["florence::quantize_rows"] > 10
    assert names[0]["_scaled_mm"] == 0
    flop = [
        sum(op.flop for graph in each.graphs for op in graph.operations if op.kind.endswith("product"))
        for each in (plain, low)
    ]
    assert flop[1] == flop[0] > 0
    assert 0 < sum(graph.fp8_flop for graph in low.graphs) < flop[0]


@pytest.mark.slow
def test_adapters_add_two_kernels_to_each_product_of_a_step() -> None:
    """Adapters add a shrink and an expand kernel to each product of a step, and move more bytes."""
    with fakes():
        plain, beside = (
            FakeEngine(Shape("tiny", slots=4, adapters=adapters)).steps([(4, 48)])[0] for adapters in (0, 3)
        )
    names, decoder_layers = beside.by_name(), 2
    # Queries, keys and values together; cross queries; both outs; feed-forward; the head.
    products = 6 * decoder_layers + 1
    assert names["florence::shrink"] == names["florence::expand"] == products
    assert beside.kernels - plain.kernels == 2 * products + decoder_layers  # GELU is apart
    assert beside.moved > plain.moved


@pytest.mark.slow
def test_a_step_moves_more_with_more_requests_and_its_kernels_stay() -> None:
    """More requests move more bytes with the same kernels, counted at tiny sizes in the engine's own
    shapes."""
    with fakes():
        engine = FakeEngine(Shape("tiny", slots=16))
        few, many = engine.steps([(1, 32), (16, 32)])
        encode = engine.encode(2)
    assert few.kernels == many.kernels > 0
    assert few.moved < many.moved
    assert len(encode.graphs) == 2
    assert encode.uploaded >= 2 * 64 * 64 * 3
