"""Measure whether HTTP slows the engine: the same requests through the library alone and through the service.

    python benchmarks/under_load.py [--size base] [--dtype bfloat16] [--pictures 24] [--concurrency 16]

A checkpoint with random weights (and the demo checkpoint's tokenizer) is written to a temporary folder. The
library captions JPEGs with `--concurrency` in flight; then `bentoml serve` gets the same JPEGs as base64 in
JSON over v2 from as many threads of this process. Both read and resize the pictures, and no picture is sent
twice. Prints pictures per second, in turns; `--spin` keeps OpenMP's own way of waiting, for comparison.

    python benchmarks/under_load.py --deadline 0.2 [--side 7600]

instead prints for each interface how long after a request its expired time limit is reported, while pictures
with sides of this many pixels wait to be read, and

    python benchmarks/under_load.py --health [--burst 2000] [--mib 60]

the longest wait of a health probe during large bodies and many concurrent requests.

    python benchmarks/under_load.py --playground 60 [--turns 2] [--rate 4] [--pause 15]

With `--playground` it prints the 95th percentile of v2 requests alone, and during playground use by ten
people, in turns of this many seconds; with `--health` too, both for one service.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from command import parser_of

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the service does, before torch is loaded

import httpx
import numpy as np
import torch
from bodies import INFER, as_text, v2_request
from deadlines import measure as measure_deadlines
from PIL import Image
from playground_users import measure as measure_beside
from playground_users import summary
from probes import measure as measure_probes
from random_models import SIDE, SIZES, make_native
from serving import ROOT, Server, serving

sys.path.insert(0, str(ROOT))

TOKENS = 12
ANSWER_S = 180.0
DEMO = ROOT / "florence" / "demo" / "checkpoint"


def write_checkpoint(directory: Path, size: str, dtype: torch.dtype) -> None:
    """Write random weights of this size for the demo checkpoint's tokenizer."""
    config = json.loads((DEMO / "config.json").read_text())
    native = make_native(size, dtype, vocab=config["text_config"]["vocab_size"])
    native.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory / name)
    preprocessor = json.loads((DEMO / "preprocessor_config.json").read_text())
    sides = {"height": SIDE[size], "width": SIDE[size]}
    preprocessor |= {"size": sides, "crop_size": sides}
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def draw_pictures(count: int, seed: int) -> list[bytes]:
    """Different JPEGs of some 240 KB."""
    dice = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(dice.integers(0, 256, (120, 160, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((1280, 960), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    return pictures


def rate(answer: Callable[[bytes], object], pictures: list[bytes], concurrency: int) -> float:
    """Pictures per second with `concurrency` in flight."""
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        for _ in pool.map(answer, pictures):
            pass
        return len(pictures) / (time.perf_counter() - started)


def body_of(picture: bytes) -> dict[str, object]:
    """The body of a v2 request."""
    parameters = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    return {**v2_request(as_text(picture)), "parameters": parameters}


def through_library(directory: Path, dtype: str, pictures: list[bytes], concurrency: int) -> float:
    """Pictures per second through the library."""
    from florence import Florence2

    with Florence2.load(str(directory), dtype=dtype) as model:
        model.warm_up()
        return rate(
            lambda picture: model.run(picture, "<CAPTION>", min_new_tokens=TOKENS, max_new_tokens=TOKENS),
            pictures,
            concurrency,
        )


def through_service(
    directory: Path, dtype: str, pictures: list[bytes], concurrency: int, environment: dict[str, str]
) -> float:
    """Pictures per second through the service."""
    settings = {"FLORENCE_MODEL": str(directory), "FLORENCE_DTYPE": dtype, **environment}
    with serving("service:service", **settings) as server, httpx.Client(timeout=ANSWER_S) as client:

        def answer(picture: bytes) -> None:
            client.post(f"{server.url}{INFER}", json=body_of(picture)).raise_for_status()

        answer(draw_pictures(1, seed=99)[0])
        return rate(answer, pictures, concurrency)


def beside_playground(server: Server, arguments: argparse.Namespace) -> str:
    """The summary of v2 requests during playground use."""
    return summary(
        *measure_beside(server, arguments.playground, arguments.turns, arguments.rate, arguments.pause)
    )


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--spin", action="store_true", help="OpenMP's own waiting in the service")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="measure this time limit instead")
    parser.add_argument("--side", type=int, default=7600, help="of the pictures before it, pixels")
    parser.add_argument("--playground", type=float, metavar="SECONDS", help="people beside v2 requests")
    parser.add_argument("--rate", type=float, default=4.0, help="v2 requests a second, beside the playground")
    parser.add_argument("--pause", type=float, default=15.0, help="of a person between requests, seconds")
    parser.add_argument("--health", action="store_true", help="measure probes instead")
    parser.add_argument("--burst", type=int, default=2000, help="requests at once")
    parser.add_argument("--mib", type=int, default=60, help="of each large body")
    arguments = parser.parse_args()
    if arguments.health or arguments.playground is not None:
        with serving("service:service", FLORENCE_MODEL="demo", FLORENCE_DTYPE="float32") as server:
            if arguments.health:
                for load, seconds, answers in measure_probes(server, arguments.burst, arguments.mib):
                    print(f"{load:24} {1000 * seconds:5.0f} ms  {answers}", flush=True)
            if arguments.playground is not None:
                print(beside_playground(server, arguments))
        return
    if arguments.deadline is not None:
        for door, seconds, status in measure_deadlines(arguments.deadline, arguments.side):
            print(f"{door:14} {seconds:6.3f} s  {status}", flush=True)
        return
    environment = {"OMP_WAIT_POLICY": "active"} if arguments.spin else {}
    alone, served = [], []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_checkpoint(directory, arguments.size, getattr(torch, arguments.dtype))
        for turn in range(arguments.turns):
            pictures = draw_pictures(arguments.pictures, seed=turn)
            options = directory, arguments.dtype, pictures, arguments.concurrency
            alone.append(through_library(*options))
            served.append(through_service(*options, environment))
    library, service = statistics.median(alone), statistics.median(served)
    print(
        f"{arguments.size}, {arguments.dtype}: library {library:.3f} pictures/s, service {service:.3f}: "
        f"{service / library:.3f} of it"
    )


if __name__ == "__main__":
    main()
