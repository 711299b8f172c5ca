"""`florence verify`: the checkpoint in this package against the same one in transformers and timm.

Turns a command line into settings and pictures; the comparison is in `florence.verification`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from florence.cli.bulk_arguments import add_model
from florence.cli.telling import list_pictures
from florence.types.precision import PRECISIONS

VERIFY: Final = (
    "compare a checkpoint with transformers and timm on this machine",
    "Both sides answer the same questions; token ids, log-probabilities and the tower's output are\n"
    "compared. Then the served dtype is compared with float32, and the speed is measured. Exit status 0:\n"
    "only known differences; 1: a fault. Needs the package florence2-server.",
)
"""The command's summary, and what its help ends with."""


def verify(arguments: argparse.Namespace) -> int:
    """`florence verify`; returns 0 where only known differences were found, else 1."""
    from florence.cli.asking import model_settings
    from florence.runtime.florence2 import Florence2
    from florence.verification.proof import verify as compare
    from florence.verification.trials import bundled_pictures, own_pictures

    given = {name: getattr(arguments, name) for name in ("device", "dtype") if getattr(arguments, name)}
    # Other ways to read pictures give other pixels. Adapters that requests name don't change a request that
    # names none.
    plain: dict[str, Any] = {
        "fast_jpeg": False,
        "pictures": "original",
        "adapters": None,
        "adapters_file": None,
    }
    settings = model_settings(arguments).model_copy(update=plain | given)
    device = settings.first_device
    pictures = own_pictures(list_pictures([arguments.pictures])) if arguments.pictures else bundled_pictures()

    if arguments.json is not None:
        arguments.json.touch()  # a path that can't be written fails before the work, not after it

    def load(dtype: str) -> Florence2:
        return Florence2.from_settings(settings.model_copy(update={"dtype": dtype}), device)

    report = compare(
        settings.model,
        load,
        pictures,
        revision=settings.revision,
        base=settings.base,
        adapter=settings.adapter,
        input_size=settings.input_size,
        device=device,
        dtype=settings.dtype,
        quick=arguments.quick,
    )
    for line in report.table():
        print(line)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.json(), indent=2) + "\n", encoding="utf-8")
    return 1 if report.faults else 0


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_model(parser)
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: as FLORENCE_DEVICE says)"
    )
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        help="the dtype to compare with float32 (default: as FLORENCE_DTYPE says); float32: none",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="directory of pictures to ask about (default: two drawings from the package)",
    )
    parser.add_argument("--quick", action="store_true", help="one picture and short answers")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the full report, with every answer")
