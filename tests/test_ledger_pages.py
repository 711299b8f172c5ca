"""The pages say what the GPU ledger reckons, in each row."""

from __future__ import annotations

import pytest
from docs_tables import DOCS, RECKONED, with_part


@pytest.mark.slow
@pytest.mark.parametrize("name", RECKONED)
def test_the_performance_page_has_the_ledgers_tables(name: str) -> None:
    """Of the default, and of each setting. `python tests/docs_tables.py --reckoned` makes it so."""
    file, make = RECKONED[name]
    page = (DOCS / file).read_text(encoding="utf-8")
    assert with_part(page, name, make()) == page


def test_the_performance_page_says_first_that_no_gpu_has_run_the_code() -> None:
    """Before any figure."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert page.split("\n\n")[1].startswith("**No GPU has run this code")
