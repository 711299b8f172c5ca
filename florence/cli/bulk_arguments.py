"""The arguments of `florence bulk` and `florence export`, without the options of a request."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from florence.types.tasks import Kind

FORMATS: Final = ("coco", "yolo", "voc", "labelstudio", "txt", "drawn")
"""What a file of answers can be exported to."""

BULK: Final = (
    "ask tasks about many pictures, into a file of JSON lines or Parquet",
    "A second run with the same OUT asks only what is not answered in it yet. A Parquet file is written\n"
    "when a run ends; until then its answers are in OUT.jsonl, where the next run finds them.\n\n"
    "A SOURCE is a picture, a directory, a glob, a list (.txt with a path a line, # begins a comment), a\n"
    "manifest (.csv, .jsonl, .parquet with the columns picture, task, text, region, id), a tar archive or\n"
    "WebDataset shards (shards/{000..099}.tar), or any of these at a URL that fsspec opens (s3://...).",
)
EXPORT: Final = (
    "make labels, captions or drawings of a file of answers",
    "yolo and voc are written by supervision's data sets (needs supervision), with copies of pictures.\n"
    "Labels have the numbers of --label-map; without it those of the alphabet, over all of RESULTS.",
)


def add_bulk(parser: argparse.ArgumentParser, whole: Callable[[str], int]) -> None:
    """Add the arguments of `florence bulk`. `whole`: parses a whole number of 1 or more."""
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="a task's name, or its token; may be given again: all are asked about each picture, seen once",
    )
    asked.add_argument(
        "--tasks",
        metavar="FILE",
        type=Path,
        help="a list of tasks with texts, regions, options and adapters, in YAML (needs pyyaml) or JSON",
    )
    add_prompt(parser, asked)
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        required=True,
        help="a JSON line for each answer; a name in .parquet: a row (needs pyarrow)",
    )
    parser.add_argument(
        "--part-rows",
        metavar="N",
        type=whole,
        default=0,
        help="make OUT a directory of Parquet files with N rows each, written as answers come",
    )
    parser.add_argument(
        "--failures",
        metavar="FILE",
        type=Path,
        help="JSON lines of what failed (default: OUT's name .failures.jsonl)",
    )
    parser.add_argument("--text", metavar="TEXT", help="as for run, for the tasks that take one")
    parser.add_argument(
        "--pages",
        metavar="PAGES",
        help="ask about each of these pages of PDFs (needs pypdfium2) and TIFF files: all, 3, 2-5 or 2-",
    )
    parser.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look into the directories of directories (default: yes)",
    )
    parser.add_argument("--shard", metavar="K/N", default="1/1", help="ask only the Kth of N parts: 3/8")
    parser.add_argument(
        "--ordered",
        action="store_true",
        help="keep answers in the order of the pictures (default: as they come)",
    )
    add_pace(parser, whole, "pictures")
    parser.add_argument(
        "--export",
        metavar="FORMAT=OUT",
        action="append",
        default=[],
        help=f"at the end also make, as florence export does: {', '.join(FORMATS)}",
    )
    _add_labels(parser)


def add_prompt(parser: argparse.ArgumentParser, asked: argparse._MutuallyExclusiveGroup) -> None:
    """Add a prompt, in place of the tasks in the group `asked`."""
    asked.add_argument(
        "--prompt", metavar="PROMPT", help="in place of a task: what the model reads, verbatim"
    )
    parser.add_argument(
        "--answer-as",
        metavar="KIND",
        choices=list(Kind),
        help=f"how the answer to PROMPT is read: {', '.join(Kind)} (default: text)",
    )


def add_pace(parser: argparse.ArgumentParser, whole: Callable[[str], int], what: str) -> None:
    """Add how many of `what` are asked at once, and whether a bar is shown."""
    parser.add_argument(
        "--concurrency", metavar="N", type=whole, default=32, help=f"{what} at once (default: 32)"
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="show no bar; none where there is no terminal"
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add a file of answers, and where its pictures are."""
    parser.add_argument("results", metavar="RESULTS", type=Path, help="a file that florence bulk wrote")
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="where relative paths of pictures begin (default: here)",
    )


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a run on a Ray cluster."""
    group = parser.add_argument_group("on a Ray cluster (needs ray[data])")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="",
        type=_address,
        help="load the model in actors of this cluster: host:port, ray://host:port or auto; without an "
        "ADDRESS RAY_ADDRESS says it, else a cluster is started here",
    )
    group.add_argument(
        "--actors",
        metavar="N..M",
        help="number of models: 4, or 2..8 for a pool that grows and shrinks (default: 1)",
    )
    group.add_argument(
        "--gpus-per-actor",
        metavar="N",
        type=_amount,
        help="may be a fraction (default: 1, or 0 where the cluster has none)",
    )
    group.add_argument(
        "--cpus-per-actor",
        metavar="N",
        type=_amount,
        help="cores, and threads of a model without a GPU (default: its share of the cores that are there)",
    )


def _address(text: str) -> str:
    if not re.fullmatch(r"auto|local|(ray://)?[^/]+:[0-9]+", text):
        raise argparse.ArgumentTypeError(
            f"an address is host:port, ray://host:port, auto or local, got {text!r}; name each SOURCE before "
            "--ray"
        )
    return text


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1
    if not 0 <= amount <= 1024:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1024, got {text!r}")
    return amount


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `florence export`."""
    add_results(parser)
    parser.add_argument(
        "--as", dest="format", metavar="FORMAT", choices=FORMATS, required=True, help=", ".join(FORMATS)
    )
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        help="a new or empty directory; txt without it: beside the pictures",
    )
    parser.add_argument(
        "--task", metavar="TASK", action="append", help="only answers of this task; may be given again"
    )
    _add_labels(parser)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label-map",
        metavar="FILE",
        type=Path,
        help="numbers of labels: a .txt with a label a line, JSON or YAML with ids by label, or a COCO file",
    )
    parser.add_argument(
        "--only-labels", action="store_true", help="leave out what --label-map lacks, in place of an error"
    )
