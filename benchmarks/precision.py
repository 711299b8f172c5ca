"""CPU seconds of one caption in each precision that a CPU serves, from pixels to token ids.

    python benchmarks/precision.py [--size large|base|tiny] [--tokens 12] [--threads 2]

With random weights, one request of 3 beams generates a fixed number of tokens by the plain search that
defines exact; precisions take turns, and medians of the rounds are printed. `python benchmarks/drift.py`
measures the changes of answers on the demo checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from random_models import RULES, SIDE, SIZES, VOCAB, make_native

from florence.checkpoint.config import read_config
from florence.checkpoint.weights import load_model
from florence.engine.device.beams.reference import generate_alone
from florence.engine.request import GenerationOptions, Request
from florence.model.devices import keep_freed_memory
from florence.model.florence2 import Florence2Model
from florence.model.fp8 import multiply_in_fp8
from florence.model.kernels.linear import pack, quantize
from florence.model.vision import Normalize

TIMED = ("bfloat16", "float32", "int8")
PRECISIONS = (*TIMED, "fp8")


def load(folder: Path, precision: str) -> Florence2Model:
    """A model as the service would run it on a CPU. int8 is used within float32, and fp8, emulated, within
    bfloat16."""
    dtype = torch.bfloat16 if precision in ("bfloat16", "fp8") else torch.float32
    normalize = Normalize((0.5,) * 3, (0.5,) * 3, 1 / 255)
    model = load_model(folder, read_config(folder), normalize, VOCAB, torch.device("cpu"), dtype)
    if precision == "int8":
        quantize(model.vision.tower, model.language.encoder, model.language.decoder)
    if precision == "fp8":
        multiply_in_fp8(model)
    pack(model)
    return model


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
