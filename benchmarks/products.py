"""Products of rows with weights: this package's kernel against oneDNN's packed product, in turns.

    python benchmarks/products.py [--width 1024] [--dtype bfloat16] [--rows 3 12 48 590] [--threads 2]

The layers are those of a decoder: width to width, to four times that, and back. There are enough of each that
no cache holds their weights (`--weight-bytes`), as in a model. Prints the best of three turns, in GFLOP per
CPU-second, and the rate at which weights are read in GB/s of wall time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from command import cost, parser_of
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.model.kernels.cpu.products import PanelWeight, Products
from florence.model.kernels.linear import PackedWeight
from florence.model.kernels.onednn import OneDnnWeight

TURNS = 3


def make_layers(
    pack: Callable[[Tensor, Tensor], PackedWeight], inner: int, outputs: int, dtype: torch.dtype, in_all: int
) -> list[PackedWeight]:
    """Layers with `in_all` bytes of weights together."""
    count = max(1, in_all // (inner * outputs * dtype.itemsize))
    bias = torch.randn(outputs).to(dtype)
    return [pack((torch.randn(outputs, inner) * inner**-0.5).to(dtype), bias) for _ in range(count)]


def multiply(layers: list[PackedWeight], states: Tensor) -> None:
    """Multiply by all layers, one after the other."""
    for layer in layers:
        layer.product(states)


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[3, 12, 48, 590])
    parser.add_argument("--weight-bytes", type=int, default=2**29, help="of all layers of one kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    products, width = Products(dtype, arguments.threads), arguments.width
    kinds: dict[str, Callable[[Tensor, Tensor], PackedWeight]] = {
        "oneDNN": OneDnnWeight,
        "florence": lambda weight, bias: PanelWeight(products, weight, bias),
    }
    print(f"{arguments.dtype}, {arguments.threads} threads; GFLOP a CPU-second, GB/s of weights")
    for inner, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
        layers = {
            name: make_layers(pack, inner, outputs, dtype, arguments.weight_bytes)
            for name, pack in kinds.items()
        }
        for rows in arguments.rows:
            states = torch.randn(rows, inner).to(dtype)
            best = dict.fromkeys(kinds, (float("inf"), float("inf")))
            for _ in range(TURNS):
                for name, these in layers.items():
                    best[name] = min(best[name], cost(partial(multiply, these, states)))
            count = len(layers["oneDNN"]) * inner * outputs
            rates = "  ".join(
                f"{name} {2e-9 * rows * count / cpu:6.1f} {1e-9 * dtype.itemsize * count / wall:6.1f}"
                for name, (cpu, wall) in best.items()
            )
            ratio = best["oneDNN"][0] / best["florence"][0]
            print(f"{inner:5} to {outputs:5}, {rows:4} rows  {rates}  CPU-s ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
