"""Parts of a directory of answers, written by Ray Data's write tasks on the nodes, under another name and
renamed when complete. Knows the columns of answers; knows nothing about where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow
from pyarrow import compute
from pyarrow.parquet import write_table
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink

from florence.answers.columns import answer_schema
from florence.bulk.lines import failure_line
from florence.bulk.parquet import next_part, part_paths
from florence.errors import RequestError


@dataclass
class PartResult:
    """The result of a run: the number of answers, and the lines of failed questions."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)


class PartSink(Datasink[PartResult]):
    """Writes parts of about `rows` rows to the directory `out`. A retried write replaces the first one, since
    it has the same name. `result`: set when everything is written."""

    def __init__(self, out: Path, rows: int) -> None:
        out.mkdir(exist_ok=True)
        self._out, self._rows = out.absolute(), rows
        self._first = next_part(out)
        for mark in out.glob(".run-*"):  # of a killed run, whose late writes then fail
            mark.unlink(missing_ok=True)
        self._mark = self._out / f".run-{uuid4().hex}"
        self.result = PartResult()

    def on_write_start(self, schema: Any = None) -> None:
        """Create a marker file, by which the nodes check that they share the directory."""
        self._mark.touch()

    def write(self, blocks: Iterable[Any], ctx: Any) -> PartResult:
        """Write one part; runs on a node. Raises `RequestError` where the directory is not the driver's."""
        self._check_mark()
        table = pyarrow.concat_tables(BlockAccessor.for_block(block).to_arrow() for block in blocks)
        failed = compute.is_valid(table["error"])
        rows = table.filter(failed).select(["picture", "id", "task", "error"]).to_pylist()
        answers = table.filter(compute.invert(failed)).select(answer_schema().names).cast(answer_schema())
        if answers.num_rows:
            new, part = part_paths(self._out, self._first + ctx.task_idx)
            write_table(answers, new, compression="zstd")
            self._check_mark()
            new.replace(part)
        lines = [failure_line(row["picture"], row["task"], row["error"], row["id"]) for row in rows]
        return PartResult(answers.num_rows, lines)

    def _check_mark(self) -> None:
        if not self._mark.exists():
            raise RequestError(
                f"{self._out} is not the same directory on all nodes, or another run has begun; name an "
                "--out on storage that they share, or leave --part-rows out"
            )

    def on_write_complete(self, write_result: Any) -> None:
        """Collect the results of all writes."""
        self._mark.unlink(missing_ok=True)
        for each in write_result.write_returns:
            self.result.answers += each.answers
            self.result.failures += each.failures

    def on_write_failed(self, error: Exception) -> None:
        """Remove the marker file."""
        self._mark.unlink(missing_ok=True)

    @property
    def min_rows_per_write(self) -> int:
        """Rows of a part."""
        return self._rows
