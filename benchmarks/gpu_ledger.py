"""Count the operations that the GPU path dispatches, without a GPU, and estimate their time; nothing is
measured.

    python benchmarks/gpu_ledger.py [--card h100|a100|l4|4090] [--size large|base]
        [--requests 64 --beams 3 --length 128] [--fp8] [--encode-stream auto|on|off] [--adapters 8]
        [--json FILE]

A decode step and an encode run on fake CUDA tensors of real sizes, as a CUDA graph would capture them, and
each dispatched operation is recorded with its kernels, bytes and FLOP. `ledger/costs.py` has the one table of
their costs, with sources, which only measurements change. The nine tasks are estimated with the engine's own
scheduler in a closed loop. `--length`: positions of the longest sequences; `--crowds`: the number of random
batches with which graphs are counted, 0 to leave that out. `--fp8`: with a setting that is off by default;
`--encode-stream`: encodes beside steps or between them; `--adapters`: the number of adapters of rank 16
beside the linear layers of the language model.
"""

from __future__ import annotations

import json
from pathlib import Path

from command import parser_of
from ledger.costs import CARDS
from ledger.reckoning import reckon
from ledger.report import whole
from random_models import SIZES


def main() -> None:
    """Print the estimates."""
    parser = parser_of(__doc__)
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--crowds", type=int, default=100)
    parser.add_argument("--fp8", action="store_true", help="with FLORENCE_DTYPE=fp8")
    parser.add_argument(
        "--encode-stream",
        choices=("auto", "on", "off"),
        default="auto",
        help="FLORENCE_ENCODE_STREAM; auto: as the trial at the start would choose, reckoned",
    )
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.fp8 and not CARDS[arguments.card].fp8:
        parser.error(f"{CARDS[arguments.card].name} does not multiply in fp8")
    figures = reckon(
        arguments.card,
        arguments.size,
        requests=arguments.requests,
        beams=arguments.beams,
        length=arguments.length,
        crowds=arguments.crowds,
        fp8=arguments.fp8,
        encode_stream=arguments.encode_stream,
        adapters=arguments.adapters,
    )
    print(whole(figures))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
