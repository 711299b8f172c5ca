"""The kernel for products with weights: exact to float32 rounding, and each row independent of others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from rounding import ROUNDING, drawn
from torch import Tensor

from florence.model.kernels.cpu.openmp import DTYPES, available
from florence.model.kernels.cpu.products import PanelWeight, Products
from florence.model.kernels.onednn import ACTIVATIONS

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="no kernels here")


@pytest.fixture(scope="module")
def made() -> dict[tuple[torch.dtype, int, int], Products]:
    """Kernels by dtype, lanes and threads, each compiled once."""
    return {}


@pytest.fixture
def products(made: dict[tuple[torch.dtype, int, int], Products], request: pytest.FixtureRequest) -> Products:
    """A kernel for one dtype, for registers of 16 or of 8 numbers."""
    dtype, lanes = request.param
    if (key := (dtype, lanes, 2)) not in made:
        made[key] = Products(dtype, threads=2, lanes=lanes)
    return made[key]


every_kernel = pytest.mark.parametrize(
    "products", [(dtype, lanes) for dtype in DTYPES for lanes in (16, 8)], indirect=True, ids=str
)
one_kernel = pytest.mark.parametrize("products", [(torch.bfloat16, 16)], indirect=True, ids=str)


def exact(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float64."""
    return F.linear(states.double(), weight.double(), None if bias is None else bias.double())


@every_kernel
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 12, 13, 48, 100, 251])
@pytest.mark.parametrize(("inner", "outputs"), [(16, 1), (48, 33), (256, 64), (272, 80), (1040, 100)])
def test_sums_are_those_of_float64(products: Products, rows: int, inner: int, outputs: int) -> None:
    """Sums equal float64's within rounding, for rows that fill registers and blocks or don't, inputs
    shorter and longer than a chunk, and half a panel."""
    states, weight = drawn(products.dtype, rows, inner), drawn(products.dtype, outputs, inner, seed=1)
    bias = drawn(products.dtype, outputs, seed=2)
    sums = PanelWeight(products, weight, bias).sums(states)
    assert sums.dtype is torch.float32
    size = states.double().abs() @ weight.double().abs().T + 1  # of what is added up
    assert ((sums - exact(states, weight, bias)).abs() / size).max() < 1e-6


@every_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_rounded_once(products: Products, activation: str | None, bias: bool) -> None:
    """A result is rounded once: GELU and the residual get the exact sums; other activations get rounded
    ones."""
    dtype = products.dtype
    states, weight = drawn(dtype, 7, 64), drawn(dtype, 80, 64, seed=1)
    offset = drawn(dtype, 80, seed=2) if bias else None
    layer, sums = PanelWeight(products, weight, offset), exact(states, weight, offset)
    step = ROUNDING[dtype]
    if activation is None:
        residual = drawn(dtype, 7, 80, seed=3)
        expected = sums + residual.double()
        found = layer.product(states, residual=residual)
        assert ((found.double() - expected).abs() <= expected.abs() * step + 2e-5).all()
    functions = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, None: lambda values: values}
    functions["gelu_new"] = lambda values: F.gelu(values, approximate="tanh")
    expected, found = functions[activation](sums), layer.product(states, activation)
    assert found.dtype is dtype
    rounded = expected.abs() if activation in (None, "gelu") else expected.abs() + 1.2 * sums.abs()
    assert ((found.double() - expected).abs() <= rounded * step + 2e-5).all()


@every_kernel
def test_gelu_is_gelu_everywhere(products: Products) -> None:
    """The kernel's GELU is exact from far below zero, where it vanishes, to far above, where it is the
    identity."""
    values = torch.linspace(-12, 12, 4001).to(products.dtype).unsqueeze(1)
    states = F.pad(values, (0, 15))  # [values, 16]; the weight picks the first
    weight = torch.zeros(32, 16, dtype=products.dtype)
    weight[:, 0] = 1
    found = PanelWeight(products, weight, None).product(states, "gelu")
    expected = F.gelu(values.double()).expand_as(found)
    error = (found.double() - expected).abs()
    assert (error <= expected.abs() * (ROUNDING[products.dtype] + 5e-7) + 1e-7).all()


@every_kernel
def test_a_row_does_not_depend_on_other_rows(products: Products) -> None:
    """A row's result has the same bits at each index and for any number of rows."""
    weight = drawn(products.dtype, 96, 544)
    layer = PanelWeight(products, weight, drawn(products.dtype, 96, seed=1))
    states = drawn(products.dtype, 110, 544, seed=2)
    alone = torch.cat([layer.product(row, "gelu") for row in states.split(1)])
    for count in (2, 3, 4, 5, 11, 12, 13, 31, 96, 97, 110):
        assert torch.equal(layer.product(states[:count], "gelu"), alone[:count])
        assert torch.equal(layer.product(states[-count:], "gelu"), alone[-count:])


@every_kernel
def test_nan_stays_in_its_row(products: Products) -> None:
    """NaN stays in its row, with and without an activation."""
    layer = PanelWeight(products, drawn(products.dtype, 40, 32), None)
    states = drawn(products.dtype, 5, 32, seed=1)
    expected = layer.product(states)
    states[3, 7] = torch.nan
    found = layer.product(states)
    assert found[3].isnan().all()
    assert torch.equal(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
    assert layer.product(states, "gelu")[3].isnan().all()


@pytest.mark.slow
@one_kernel
def test_any_number_of_threads_gives_the_same(products: Products) -> None:
    """Any number of threads gives the same bits."""
    weight, states = drawn(torch.bfloat16, 700, 320), drawn(torch.bfloat16, 30, 320, seed=1)
    expected = PanelWeight(products, weight, None).sums(states)
    for threads in (1, 3, 5):
        layer = PanelWeight(Products(torch.bfloat16, threads), weight, None)
        assert torch.equal(layer.sums(states), expected)


@one_kernel
def test_views_give_the_result_of_their_values(products: Products) -> None:
    """Rows of a wider tensor, transposed and cut ones give the result of a copy, as states and as a
    residual."""
    layer = PanelWeight(products, drawn(torch.bfloat16, 48, 32), None)
    wide, deep = drawn(torch.bfloat16, 9, 80, seed=1), drawn(torch.bfloat16, 48, 9, 2, seed=2)
    for view in (wide[:, 16:48], wide[::2, :32], deep[:32, :, 1].T, deep.permute(2, 1, 0)[..., 16:]):
        found = layer.product(view)
        assert found.shape == (*view.shape[:-1], 48)
        assert torch.equal(found, layer.product(view.contiguous()))
    added = deep[:, :, 0].T
    plain = layer.product(wide[:, :32], residual=added.contiguous())
    assert torch.equal(layer.product(wide[:, :32], residual=added), plain)
    assert layer.product(wide[:0, :32]).shape == (0, 48)


@one_kernel
def test_shapes_and_dtypes_that_do_not_match_are_refused(products: Products) -> None:
    """Wrong shapes and dtypes are refused, so the kernel never reads outside a tensor."""
    layer = PanelWeight(products, drawn(torch.bfloat16, 48, 32), None)
    states = drawn(torch.bfloat16, 4, 32)
    for wrong in (states[:, :16], states.float(), states.to("meta")):
        with pytest.raises(
            ValueError, match=r"states must be \[\.\.\., 32\] of torch.bfloat16 in host memory"
        ):
            layer.product(wrong)
    with pytest.raises(ValueError, match="3 rows of a residual for 4 rows"):
        layer.product(states, residual=drawn(torch.bfloat16, 3, 48))
    with pytest.raises(ValueError, match=r"states must be \[\.\.\., 48\]"):
        layer.product(states, residual=drawn(torch.bfloat16, 4, 32))
    assert not products.fit(drawn(torch.bfloat16, 8, 24))
    assert not products.fit(drawn(torch.float32, 8, 32))
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64"):
        Products(torch.float64)


@pytest.mark.slow
def test_numba_is_loaded_only_for_a_kernel() -> None:
    """numba is imported only when a kernel is made."""
    code = "import sys, florence.model.kernels.linear; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
