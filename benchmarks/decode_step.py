"""CPU seconds and wall seconds of one decode step: this engine against `transformers.generate`, in one run.

    python benchmarks/decode_step.py [--size large|base|tiny] [--requests 16] [--beams 3] [--dtype bfloat16]

Both decode the same random weights from encoder states of the same length, with beam search, the n-gram rule
and forced tokens. A step's cost is the difference between a long and a short run, so that what happens once
does not count. transformers runs one static batch, its best case; the engine runs requests that could join
and leave.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from florence.model.batch import DecodeState, decode_step
from transformers import Florence2Config, Florence2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from random_models import SIZES, convert, make_native

from florence.engine.request import GenerationOptions, Request
from florence.engine.runner import Decoding, Runner
from florence.model.florence2 import Florence2Model

ENCODER_LENGTH = 590
SHORT, LONG = 8, 24


def per_step(run: Callable[[int], None]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one step: best of three differences between long and short runs."""
    costs = []
    run(SHORT)
    for _ in range(3):
        marks = []
        for steps in (SHORT, LONG):
            cpu, wall = time.process_time(), time.perf_counter()
            run(steps)
            marks.append((time.process_time() - cpu, time.perf_counter() - wall))
        costs.append(tuple((long - short) / (LONG - SHORT) for short, long in zip(*marks, strict=True)))
    return min(costs)[0], min(cost[1] for cost in costs)


@torch.inference_mode()
def time_transformers(
    native: Florence2ForConditionalGeneration, encoded: torch.Tensor, beams: int
) -> tuple[float, float]:
    """`generate` over a static batch, nobody leaving."""

    def run(steps: int) -> None:
        native.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=torch.ones(encoded.shape[:2], dtype=torch.long),
            do_sample=False,
            num_beams=beams,
            min_new_tokens=steps,
            max_new_tokens=steps,
            no_repeat_ngram_size=3,
            early_stopping=True,
            forced_bos_token_id=0,
            forced_eos_token_id=2,
        )

    return per_step(run)


@torch.inference_mode()
def time_engine(model: Florence2Model, encoded: torch.Tensor, beams: int) -> tuple[float, float]:
    """The engine's step and the searches of all requests."""
    cross = model.language.decoder.cross(encoded)

    def run(steps: int) -> None:
        options = GenerationOptions(beams, steps, steps, 3, True, 1.0)
        searches = [start_search(options, RULES) for _ in encoded]
        states = [
            DecodeState([layer.row(row, encoded.shape[1]) for layer in cross], beams, steps)
            for row in range(len(encoded))
        ]
        while not searches[0].done:
            parents, tokens = zip(*((search.parents, search.tokens) for search in searches), strict=True)
            for search, logits in zip(
                searches, decode_step(model.language, states, parents, tokens), strict=True
            ):
                search.take(logits)

    return per_step(run)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    native = make_native(arguments.size, dtype)
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(folder)
        normalize = Normalize((0.5,) * 3, (0.5,) * 3, 1 / 255)
        model = load_model(Path(folder), normalize, VOCAB, torch.device("cpu"), dtype)
    encoded = torch.randn(arguments.requests, ENCODER_LENGTH, SIZES[arguments.size][0]).to(dtype)
    theirs = time_transformers(native, encoded, arguments.beams)
    ours = time_engine(model, encoded, arguments.beams)
    print(
        f"{arguments.size}, {arguments.requests} requests x {arguments.beams} beams, {ENCODER_LENGTH} tokens "
        f"encoded, {arguments.dtype}, {torch.get_num_threads()} threads"
    )
    for name, (cpu, wall) in (("transformers", theirs), ("florence", ours)):
        print(f"{name:13} {cpu:8.4f} CPU-s  {wall:8.4f} s wall")
    print(f"{'ratio':13} {theirs[0] / ours[0]:8.2f}        {theirs[1] / ours[1]:8.2f}")


if __name__ == "__main__":
    main()
