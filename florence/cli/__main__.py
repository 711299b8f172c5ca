"""`python -m florence.cli`: the `florence` command where no script of that name is, as in the image."""

import sys

from florence.cli import main

sys.exit(main())
