"""`python -m florence.cli`: the `florence` command where no script of that name is installed, as in the
image."""

import sys

from florence.cli import main

if __name__ == "__main__":
    sys.exit(main())
