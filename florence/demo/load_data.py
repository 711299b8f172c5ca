"""`python -m florence.demo.load_data PICTURE`: what `florence load-data PICTURE` does, where no command is
installed."""

from __future__ import annotations

import sys

from florence.cli import main

if __name__ == "__main__":
    sys.exit(main(["load-data", *sys.argv[1:]]))
