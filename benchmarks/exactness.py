"""Token ids at real sizes: this engine, all requests at once, against `transformers.generate`, one by one.

    python benchmarks/exactness.py [--size base|large|small|tiny] [--tokens 20] [--beams 1 3 5] [--seed 0]

It runs in float32 on a CPU. Fifteen requests, one for each task, each with its own picture, a prompt of the
task's length, and every number of beams; 3-gram rule, forced tokens and early stopping are those of
Microsoft's checkpoints. The engine gets all of them together, configured as in the service; transformers gets
them one by one. Both add float32 numbers in different orders, so of two equally good searches either may win:
such a pair is printed with its scores. The initial weights of a training give each picture one list of likely
tokens, independent of the generated ones; here weights are drawn so that picture, prompt and earlier tokens
determine the next one, and some sequences end before their limit (see `decide` in `random_models.py`;
`--as-drawn` keeps the initial weights). The gap between the two likeliest tokens of greedy search is printed
with the difference between the two programs' numbers.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from command import parser_of
from random_models import (
    SIDE,
    SIZES,
    VOCAB,
    backend_of,
    convert,
    decide,
    make_native,
    native_inputs,
    picture_tokens,
)
from transformers import Florence2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florence.engine.config import EngineConfig
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.request import Generation, GenerationOptions, Request
from florence.model.devices import bound_kernel_caches, keep_freed_memory
from florence.model.florence2 import Florence2Model
from florence.runtime.futures import generate

PROMPT_TOKENS = {
    "CAPTION": 8,
    "DETAILED_CAPTION": 13,
    "MORE_DETAILED_CAPTION": 14,
    "OD": 13,
    "DENSE_REGION_CAPTION": 14,
    "REGION_PROPOSAL": 11,
    "OCR": 10,
    "OCR_WITH_REGION": 13,
    "CAPTION_TO_PHRASE_GROUNDING": 21,
    "REFERRING_EXPRESSION_SEGMENTATION": 12,
    "REGION_TO_SEGMENTATION": 15,
    "OPEN_VOCABULARY_DETECTION": 11,
    "REGION_TO_CATEGORY": 12,
    "REGION_TO_DESCRIPTION": 13,
    "REGION_TO_OCR": 14,
}
"""Tokens of each task's prompt with its usual example, by the tokenizer of Microsoft's checkpoints."""

SLOTS = 16


@dataclass(frozen=True)
class Theirs:
    """transformers' result: ids without padding, their log-probabilities and score.

    `gaps`: in a greedy search, the log-probability of each step's best token minus that of the second.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    score: float
    gaps: tuple[float, ...]


def requests(size: str, tokens: int, beams: Sequence[int], seed: int) -> list[tuple[str, Request]]:
    """Every task with every number of beams, in random order; requests of one task share picture
    and prompt."""
    dice = np.random.default_rng(seed)
    shape = (SIDE[size], SIDE[size], 3)
    asked = []
    for task, length in PROMPT_TOKENS.items():
        pixels = dice.integers(0, 256, shape, dtype=np.uint8)
        prompt = (0, *dice.integers(4, VOCAB - 1100, length - 2).tolist(), 2)
        asked += [
            (task, Request(pixels, prompt, GenerationOptions(count, tokens, 0, 3, True, 1.0)))
            for count in beams
        ]
    random.Random(seed).shuffle(asked)
    return asked


def run_engine(model: Florence2Model, size: str, asked: Sequence[Request]) -> list[Generation]:
    """Answer all requests together with the engine, as the service sets it up on this CPU."""
    keep_freed_memory()
    bound_kernel_caches()
    config = EngineConfig(
        max_batch_size=SLOTS, max_new_tokens=1023, max_prompt_tokens=1024 - picture_tokens(size)
    )
    engine = Engine(Runner(model, SLOTS, backend=backend_of(model)), config)
    futures = [generate(engine, request) for request in asked]
    answers = [future.result() for future in futures]
    engine.close()
    return answers


@torch.inference_mode()
def generate_alone(native: Florence2ForConditionalGeneration, request: Request) -> Theirs:
    """Answer one request with transformers' own `generate`."""
    options = request.options
    search = {"early_stopping": True, "length_penalty": options.length_penalty}
    found = native.generate(
        **native_inputs([request], native.device, image=native.config.image_token_id),
        do_sample=False,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        return_dict_in_generate=True,
        output_scores=True,
        **(search if options.num_beams > 1 else {}),
    )
    greedy = options.num_beams == 1
    logprobs = native.compute_transition_scores(
        found.sequences, found.scores, None if greedy else found.beam_indices, normalize_logits=greedy
    )[0].tolist()
    token_ids = found.sequences[0].tolist()
    length = token_ids.index(2, 1) + 1
    logprobs = logprobs[: length - 1]
    best = [scores[0].log_softmax(-1).topk(2).values.tolist() for scores in found.scores] if greedy else []
    return Theirs(
        tuple(token_ids[:length]),
        tuple(logprobs),
        sum(logprobs) / len(logprobs) ** options.length_penalty,
        tuple(first - second for first, second in best if second > -torch.inf),  # without forced tokens
    )


def main() -> None:
    """Run the comparison."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--tokens", type=int, default=20, help="most tokens of an answer")
    parser.add_argument("--beams", type=int, nargs="+", default=(1, 3, 5))
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and prompts")
    parser.add_argument(
        "--as-drawn", action="store_true", help="with the weights that a training starts from"
    )
    arguments = parser.parse_args()
    size = arguments.size
    native = make_native(size, torch.float32, arguments.seed)
    if not arguments.as_drawn:
        decide(native, arguments.seed)
    asked = requests(size, arguments.tokens, arguments.beams, arguments.seed)
    started = time.perf_counter()
    theirs = [generate_alone(native, request) for _, request in asked]
    between = time.perf_counter()
    ours = run_engine(convert(native, torch.device("cpu"), torch.float32), size, [each for _, each in asked])
    print(
        f"{size}, float32, {torch.get_num_threads()} threads; transformers one by one "
        f"{between - started:.0f} s, the engine {time.perf_counter() - between:.0f} s"
    )
    report(asked, ours, theirs)


def report(
    asked: Sequence[tuple[str, Request]], ours: Sequence[Generation], theirs: Sequence[Theirs]
) -> None:
    """Print the comparison."""
    same: dict[int, list[bool]] = {}
    apart, lengths, gaps = [0.0], set(), []
    for (task, request), our, their in zip(asked, ours, theirs, strict=True):
        beams = request.options.num_beams
        equal = our.token_ids == their.token_ids
        same.setdefault(beams, []).append(equal)
        lengths.add(len(their.token_logprobs))
        gaps += their.gaps
        if equal:
            pairs = zip(our.token_logprobs, their.token_logprobs, strict=True)
            apart.append(max(abs(one - other) for one, other in pairs))
            continue
        print(f"{task}, {beams} beams: the engine {our.score:.6f}, transformers {their.score:.6f}")
        print(f"  {our.token_ids}\n  {their.token_ids}")
    for beams, found in sorted(same.items()):
        print(f"{beams} beams: {sum(found)} of {len(found)} with the same token ids")
    different = len({their.token_ids for their in theirs})
    print(f"{different} different answers, lengths {min(lengths)} to {max(lengths)} tokens")
    print(f"log-probabilities of equal answers differ by {max(apart):.1e} at most")
    if gaps:
        print(f"greedy, best against second: median {statistics.median(gaps):.3f}, least {min(gaps):.1e}")


if __name__ == "__main__":
    main()
