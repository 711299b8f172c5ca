"""`florence convert`: a checkpoint that the service refuses becomes a directory that it serves."""

from __future__ import annotations

import argparse


def convert(arguments: argparse.Namespace) -> int:
    """`florence convert`; writes the directory and returns 0."""
    from florence.convert.convert import GIB, Conversion
    from florence.convert.convert import convert as write

    wanted = Conversion(
        arguments.source,
        revision=arguments.revision,
        base=arguments.base,
        adapter=arguments.adapter,
        memory=int(arguments.memory_gib * GIB),
    )
    write(wanted, arguments.out)
    print(f"{arguments.out} is ready: FLORENCE_MODEL={arguments.out}")
    return 0
