"""Measure the difference of a precision from float32 inside the model, at real sizes with random weights.

    python benchmarks/logits.py [--size large|base|tiny] [--precisions bfloat16 fp8 int8] [--threads 2]

With the same pictures, prompts and forced tokens in each precision, it prints the differences of picture
tokens, encoder states and logits from those in float32, relative to their standard deviation, and how often
the likeliest token is the same. A CPU emulates fp8. `drift.py` measures changes of answers on the demo
checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from closed_loop import requests
from command import parser_of
from precision import PRECISIONS, load
from random_models import SIZES, VOCAB, decide, make_native
from torch import Tensor

from florence.model.florence2 import Florence2Model

PICTURES, TOKENS = 2, 24


@torch.inference_mode()
def states_of(model: Florence2Model, size: str) -> dict[str, Tensor]:
    """The model's states for random pictures and forced random tokens, in float32 on the CPU."""
    dice, device = torch.Generator().manual_seed(0), model.device
    pixels = torch.from_numpy(np.stack([each.pixels for each in requests(size, 1, PICTURES)])).to(device)
    ids = torch.randint(100, VOCAB - 1100, (PICTURES, TOKENS), generator=dice).to(device)
    prompt = torch.tensor([[0, 100, 101, 2]] * PICTURES, device=device)
    tokens = model.encode_images(pixels)
    encoded = model.encode(tokens, prompt)
    states, _ = model.language.decode(ids, None, model.language.decoder.cross_kv(encoded))
    found = {"picture tokens": tokens, "encoder states": encoded, "logits": model.language.logits(states)}
    return {name: values.float().cpu() for name, values in found.items()}


def apart(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The root mean square of each difference, divided by the standard deviation of the exact values, and the
    share of equal first choices."""
    parts = {
        name: float((found[name] - values).square().mean().sqrt() / values.std())
        for name, values in exact.items()
    }
    same = found["logits"].argmax(-1) == exact["logits"].argmax(-1)
    return {**parts, "same first choice": float(same.float().mean())}


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bfloat16", "fp8", "int8"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        native = make_native(arguments.size, torch.float32)
        decide(native)
        native.save_pretrained(folder)
        del native
        exact = states_of(load(Path(folder), "float32"), arguments.size)
        print(f"{arguments.size}, random weights, from float32 by a share of the spread")
        for precision in arguments.precisions:
            figures = apart(states_of(load(Path(folder), precision), arguments.size), exact)
            line = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(f"{precision:9} {line}", flush=True)


if __name__ == "__main__":
    main()
