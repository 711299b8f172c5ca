"""Puts the training into one file: `python -m florence.demo.bundle train_demo.pyz`.

For a machine without network: the file holds this package and the fonts, and needs Python with torch,
transformers, tokenizers, safetensors, numpy and Pillow. There, `python train_demo.pyz --state DIR
--device cuda --workers 12` is `python -m florence.demo.train` with these options.

Knows nothing about training.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from florence.demo.world.typeface import FACES

_MAIN: Final = "from florence.demo.train import main\nmain()\n"


def write_bundle(path: Path) -> None:
    """Writes the file. ModuleNotFoundError where a package of fonts is missing."""
    packages = ["florence", *sorted({package for package, _ in FACES.values() if package})]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", _MAIN)
        for package in packages:
            for name, file in _files(resources.files(package), package):
                archive.writestr(name, file.read_bytes())


def _files(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    """Python files and fonts, with the names they have in the bundle; no weights, nothing compiled."""
    for entry in folder.iterdir():
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files(entry, path)
        elif entry.name.endswith((".py", ".ttf", ".txt")):
            yield path, entry


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the file to write, .pyz by custom")
    write_bundle(parser.parse_args().out)


if __name__ == "__main__":
    main()
