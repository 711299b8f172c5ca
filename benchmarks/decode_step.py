"""CPU seconds and wall seconds of one decode step: this engine against `transformers.generate`, in one run.

    python benchmarks/decode_step.py [--size large|base|tiny] [--requests 16] [--beams 3] [--dtype bfloat16]
                                     [--scores | --adapters N [--rank R]]

Both decode with the same random weights from encoder states of the same length, with beam search, the n-gram
rule and forced tokens, in turns; a figure is the median over the steps of all turns. transformers runs one
static batch, its best case; the engine runs requests that could join and leave. The script also prints the
rate of the best matrix product on this machine, and the time of the step's own products at that rate.

`--scores` measures, in place of transformers, the cost of the window sums for scores in a step in which every
beam writes a location; a step without locations skips them.

`--adapters` measures, in place of transformers, the cost of N adapters of rank R in a step in which every
request has one, and in an encode. They adapt q, k, v and the second feed-forward layer of the language model,
that of the tower, and the head, as usual trainings of Florence-2 do. Each figure is the median over the steps
of the fastest turn, since other work on the machine can only add to it.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from command import Cost, medians, now, parser_of, since
from random_models import SIDE, SIZES, backend_of, convert, make_native
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from florence.engine.adapters import EngineAdapter
from florence.engine.device.beams.search_state import starts_of
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.adapters.lowrank import Factors, linear_layers
from florence.model.florence2 import Florence2Model

ENCODER_LENGTH = 590
PICTURES = 4
"""The pictures of an encode, as many as the service encodes together on a CPU."""
SIZE = 0.02
"""The scale of an adapter's numbers, as small as in a trained one, so that states change little."""
ADAPTED = re.compile(r"^language.*(q_proj|k_proj|v_proj|fc2)$|^vision.*fc2$|lm_head$")

FIRST, LAST = 8, 24
"""The range of steps that count; the first ones warm up."""


class Clock(StoppingCriteria):
    """Records the time after each step and never stops the generation."""

    def __init__(self) -> None:
        self.marks: list[Cost] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self.marks.append(now())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def costs(self) -> list[Cost]:
        """The costs of the steps that count."""
        pairs = zip(self.marks[FIRST:LAST], self.marks[FIRST + 1 : LAST + 1], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


@torch.inference_mode()
def steps_of_transformers(
    native: Florence2ForConditionalGeneration, encoded: Tensor, beams: int
) -> list[Cost]:
    """The costs of the steps of `generate` over a static batch."""
    clock = Clock()
    native.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        attention_mask=torch.ones(encoded.shape[:2], dtype=torch.long),
        do_sample=False,
        num_beams=beams,
        min_new_tokens=LAST + 2,
        max_new_tokens=LAST + 2,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return clock.costs()


@torch.inference_mode()
def steps_of_engine(
    runner: Runner, encoded: Tensor, beams: int, adapters: Sequence[EngineAdapter | None] = (None,)
) -> list[Cost]:
    """The costs of the engine's steps, including all searches; requests use these adapters in turn."""
    options = GenerationOptions(beams, LAST + 2, LAST + 2, 3, True, 1.0)
    request = Request(np.zeros((32, 32, 3), np.uint8), (0, 2), options)
    taken = [runner.slots.take(beams) for _ in encoded]
    slots = torch.tensor([slot.index for slot in taken])
    runner.caches.write_cross_kv(slots, runner.model.language.decoder.cross_kv_by_layer(encoded))
    runner.state.start(starts_of([(slot, options) for slot in taken]))
    sequences = [
        SequenceState(replace(request, adapter=adapters[index % len(adapters)]))
        for index in range(len(encoded))
    ]
    for sequence, slot in zip(sequences, taken, strict=True):
        sequence.place(slot, 577, ENCODER_LENGTH)
    runner.place_adapters(sequences)
    clock = Clock()
    for _ in range(LAST + 2):
        runner.step(sequences)
        clock.marks.append(now())
    return clock.costs()


def make_adapters(model: Florence2Model, count: int, rank: int) -> list[EngineAdapter]:
    """Adapters with random numbers."""
    layers = {name: layer for name, layer in linear_layers(model).items() if ADAPTED.search(name)}
    return [
        EngineAdapter(
            str(number),
            {
                name: Factors(
                    SIZE * torch.randn(rank, layer.in_features), SIZE * torch.randn(layer.out_features, rank)
                )
                for name, layer in layers.items()
            },
            str(number).encode(),
        )
        for number in range(count)
    ]


@torch.inference_mode()
def encode_cost(model: Florence2Model, side: int, index: Tensor) -> Cost:
    """One encode of pictures with prompts of twelve tokens, with the adapters in the slots `index`."""
    pixels = torch.randint(0, 256, (len(index), side, side, 3), dtype=torch.uint8)
    prompts = torch.zeros(len(index), 12, dtype=torch.int64)
    began = now()
    with model.with_adapters(index):
        encoded = model.encode(model.encode_images(pixels), prompts)
        model.language.decoder.cross_kv(encoded)
    return since(began)


def _print_adapters(runner: Runner, encoded: Tensor, arguments: argparse.Namespace) -> None:
    """Print what adapters add to a step and to an encode."""
    plain, adapted = list[list[Cost]](), list[list[Cost]]()
    adapters = make_adapters(runner.model, arguments.adapters, arguments.rank)
    for _ in range(arguments.turns):
        plain.append(steps_of_engine(runner, encoded, arguments.beams))
        adapted.append(steps_of_engine(runner, encoded, arguments.beams, adapters))
    _print_share("step", plain, adapted)
    slots, side = 1 + torch.arange(PICTURES) % arguments.adapters, SIDE[arguments.size]
    plain, adapted = [], []
    for _ in range(arguments.turns):
        plain.append([encode_cost(runner.model, side, torch.zeros_like(slots))])
        adapted.append([encode_cost(runner.model, side, slots)])
    _print_share(f"encode of {PICTURES}", plain, adapted)


def _print_share(name: str, plain: list[list[Cost]], adapted: list[list[Cost]]) -> None:
    """Print the costs without and with adapters."""
    best = [min(map(medians, turns)) for turns in (plain, adapted)]
    for which, (cpu, wall) in zip(("without", "with"), best, strict=True):
        print(f"{name} {which:8} {1e3 * cpu:9.2f} CPU-ms {1e3 * wall:9.2f} ms wall")
    more = [after / before - 1 for before, after in zip(*best, strict=True)]
    print(f"{name} {'more':8} {more[0]:9.1%}        {more[1]:9.1%}")


@torch.inference_mode()
def scores_of_step(runner: Runner, requests: int, beams: int) -> Cost:
    """The cost of a step's window sums: the median of many, without the first ones."""
    state, text = runner.state, runner.model.config.text
    ordered, window_sums = runner.rules.ordered, state.window_sums
    if ordered is None or window_sums is None:
        raise ValueError("the runner keeps no window sums")
    logits = torch.randn(requests * beams, text.vocab_size)
    normalizer = logits.logsumexp(-1)
    rows = torch.arange(requests * beams).view(requests, beams)
    tokens = torch.randint(ordered.start, ordered.stop, (requests, beams))
    costs = []
    for _ in range(300):
        began = now()
        sums = window_sums(logits, normalizer, rows, tokens)
        state.windows[rows, torch.zeros_like(rows)] = sums
        costs.append(since(began))
    cpu, wall = medians(costs[50:])
    return cpu, wall


def rate_of_products(rows: int, width: int, dtype: torch.dtype) -> float:
    """FLOP per CPU-second of the best product of `rows` rows with a matrix of 4 * width by width, and of a
    large product."""
    best = 0.0
    for count, inner, outer in ((rows, width, 4 * width), (4096, 4096, 4096)):
        left, right = torch.randn(count, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        for _ in range(6):
            started = time.process_time()
            repeats = max(1, int(2e10 / (2 * count * inner * outer)))
            for _ in range(repeats):
                torch.nn.functional.linear(left, right)
            best = max(best, 2 * count * inner * outer * repeats / (time.process_time() - started))
    return best


def flops_of_step(model: Florence2Model, rows: int) -> float:
    """FLOP of the products with weights; attention needs a twentieth of that."""
    config = model.config.text
    width, decoder = config.d_model, config.decoder
    layer = 6 * width * width + 2 * width * decoder.ffn_dim
    return 2.0 * rows * (decoder.layers * layer + width * config.vocab_size)


def _print_scores(steps: list[Cost], scores: Cost) -> None:
    """Print the costs of a step and of its window sums."""
    step = medians(steps)
    print(f"{'step':13} {1e3 * step[0]:8.2f} CPU-ms {1e3 * step[1]:8.2f} ms wall")
    print(f"{'scores':13} {1e3 * scores[0]:8.2f} CPU-ms {1e3 * scores[1]:8.2f} ms wall")
    print(f"{'share':13} {scores[0] / step[0]:8.2%}        {scores[1] / step[1]:8.2%}")


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scores", action="store_true", help="what scores add to a step")
    parser.add_argument("--adapters", type=int, default=0, help="what so many adapters add to a step")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    native = make_native(arguments.size, dtype)
    model = convert(native, torch.device("cpu"), dtype)
    backend = backend_of(model)
    if arguments.adapters:
        model.adapters = backend.products.make_bank(model, arguments.adapters)
    ordered = range(100, 1100)  # any thousand ids
    runner = Runner(model, arguments.requests, backend=backend, ordered=ordered)
    width = SIZES[arguments.size][0]
    encoded = torch.randn(arguments.requests, ENCODER_LENGTH, width).to(dtype)
    print(
        f"{arguments.size}, {arguments.requests} requests x {arguments.beams} beams, {ENCODER_LENGTH} tokens "
        f"encoded, {arguments.dtype}, {torch.get_num_threads()} threads"
    )
    if arguments.adapters:
        _print_adapters(runner, encoded, arguments)
        return
    if arguments.scores:
        ours = [
            cost for _ in range(arguments.turns) for cost in steps_of_engine(runner, encoded, arguments.beams)
        ]
        _print_scores(ours, scores_of_step(runner, arguments.requests, arguments.beams))
        return
    rate = rate_of_products(arguments.requests * arguments.beams, width, dtype)
    theirs: list[Cost] = []
    ours: list[Cost] = []
    for _ in range(arguments.turns):
        theirs += steps_of_transformers(native, encoded, arguments.beams)
        ours += steps_of_engine(runner, encoded, arguments.beams)
    their, our = medians(theirs), medians(ours)
    for name, (cpu, wall) in (("transformers", their), ("florence", our)):
        print(f"{name:13} {cpu:8.4f} CPU-s  {wall:8.4f} s wall")
    print(f"{'ratio':13} {their[0] / our[0]:8.2f}        {their[1] / our[1]:8.2f}")
    floor = flops_of_step(model, arguments.requests * arguments.beams) / rate
    print(
        f"best product: {rate / 1e9:.0f} GFLOP a CPU-second; the step's products at that: {floor:.4f} CPU-s"
    )


if __name__ == "__main__":
    main()
