"""CPU seconds of one caption in each precision that a CPU serves, from pixels to token ids.

    python benchmarks/precision.py [--size large|base|tiny] [--tokens 12] [--threads 2]

With random weights, one request of 3 beams generates a fixed number of tokens by the plain search that
defines exact; precisions take turns, and medians of the rounds are printed. `python benchmarks/drift.py`
measures the changes of answers on the demo checkpoint.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import parser_of
from random_models import RULES, SIDE, SIZES, load_saved, make_native

from florence.engine.device.beams.reference import generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.model.devices import keep_freed_memory
from florence.model.florence2 import Florence2Model

TIMED = ("bfloat16", "float32", "int8")
PRECISIONS = (*TIMED, "fp8")


def load(folder: Path, precision: str) -> Florence2Model:
    """A model as the service would run it on a CPU. int8 is used within float32, and fp8, emulated, within
    bfloat16."""
    dtype = torch.bfloat16 if precision in ("bfloat16", "fp8") else torch.float32
    quantized: Any = precision if precision in ("fp8", "int8") else ""
    return load_saved(folder, torch.device("cpu"), dtype, quantized)


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        make_native(arguments.size, torch.float32).save_pretrained(folder)
        models = {precision: load(Path(folder), precision) for precision in TIMED}
    side = SIDE[arguments.size]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    options = GenerationOptions(3, arguments.tokens, arguments.tokens, 3, True, 1.0)
    request = Request(pixels, tuple(range(4, 17)), options)
    costs: dict[str, list[float]] = {precision: [] for precision in TIMED}
    for round_ in range(arguments.rounds + 1):
        for precision, model in models.items():
            began = time.process_time()
            generate_alone(model, request, RULES)
            if round_:  # the first round compiles kernels and touches memory
                costs[precision].append(time.process_time() - began)
    medians = {precision: statistics.median(found) for precision, found in costs.items()}
    print(f"{arguments.size}, {arguments.tokens} tokens x 3 beams, {arguments.threads} threads")
    for precision, seconds in medians.items():
        print(f"{precision:9} {seconds:8.3f} CPU-s  bfloat16 / it {medians['bfloat16'] / seconds:5.2f}")


if __name__ == "__main__":
    main()
