"""The arguments of `florence bulk` and `florence export`, without the options of a request."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from florence.client.tasks import CONCURRENCY
from florence.types.tasks import Kind

FORMATS: Final = ("coco", "yolo", "voc", "labelstudio", "txt", "drawn")
"""What a file of answers can be exported to."""

BULK: Final = (
    "ask tasks about many pictures, into a file of JSON lines or Parquet",
    "A second run with the same OUT asks only what OUT has no answer to. A Parquet file is written\n"
    "when a run ends; until then its answers are in OUT.jsonl, from which the next run continues.\n\n"
    "A SOURCE is a picture, a directory, a glob, a list (.txt with one path per line; # begins a\n"
    "comment), a manifest (.csv, .jsonl, .parquet with the columns picture, task, text, region, id), a\n"
    "tar archive or WebDataset shards (shards/{000..099}.tar), or any of these at a URL that fsspec\n"
    "opens (s3://...).",
)
EXPORT: Final = (
    "export the answers in a file of florence bulk as labels, captions or drawings",
    "yolo and voc need supervision, and contain copies of the pictures. Labels have the ids of\n"
    "--label-map; without it, all labels in RESULTS are numbered in alphabetical order.",
)


def add_bulk(parser: argparse.ArgumentParser, whole: Callable[[str], int]) -> None:
    """Add the arguments of `florence bulk`. `whole`: parses a whole number of 1 or more."""
    _add_tasks(parser)
    _add_output(parser, whole)
    _add_pictures(parser)
    add_pace(parser, whole, "pictures")
    parser.add_argument(
        "--export",
        metavar="FORMAT=OUT",
        action="append",
        default=[],
        help=f"export the answers at the end, as florence export does; FORMAT: {', '.join(FORMATS)}",
    )
    _add_labels(parser)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add what is asked about each picture."""
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="a task's name or token; may be given again: each picture is encoded once for all its tasks",
    )
    asked.add_argument(
        "--tasks",
        metavar="FILE",
        type=Path,
        help="a file in JSON or YAML (needs pyyaml) that lists tasks with texts, regions, options, adapters",
    )
    add_prompt(parser, asked)
    parser.add_argument("--text", metavar="TEXT", help="the text for tasks that take one")


def _add_output(parser: argparse.ArgumentParser, whole: Callable[[str], int]) -> None:
    """Add where answers and failures are written, and in which order."""
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        required=True,
        help="where answers go, one JSON line for each; as a Parquet file if it ends in .parquet (needs "
        "pyarrow)",
    )
    parser.add_argument(
        "--part-rows",
        metavar="N",
        type=whole,
        default=0,
        help="OUT is a directory of Parquet files of N rows; each is written once it has N rows",
    )
    parser.add_argument(
        "--failures",
        metavar="FILE",
        type=Path,
        help="file for failures as JSON lines (default: OUT.failures.jsonl)",
    )
    parser.add_argument(
        "--ordered",
        action="store_true",
        help="write answers in the order of the pictures (default: as they arrive)",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add which pictures of the sources are asked about."""
    parser.add_argument(
        "--pages",
        metavar="PAGES",
        help="pages of PDFs (needs pypdfium2) and TIFF files, each asked about: all, 3, 2-5 or 2-",
    )
    parser.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="search subdirectories too (default: yes)",
    )
    parser.add_argument(
        "--shard", metavar="K/N", default="1/1", help="ask only about part K of N, such as 3/8"
    )


def add_prompt(parser: argparse.ArgumentParser, asked: argparse._MutuallyExclusiveGroup) -> None:
    """Add a prompt, in place of the tasks in the group `asked`."""
    asked.add_argument(
        "--prompt",
        metavar="PROMPT",
        help="a custom prompt, which the model reads verbatim, in place of a task",
    )
    parser.add_argument(
        "--answer-as",
        metavar="KIND",
        choices=list(Kind),
        help=f"how the answer to PROMPT is read: {', '.join(Kind)} (default: text)",
    )


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add the name of a checkpoint."""
    parser.add_argument(
        "--model", metavar="NAME", help="a hub id, a directory or demo (default: as FLORENCE_MODEL says)"
    )


def add_pace(parser: argparse.ArgumentParser, whole: Callable[[str], int], what: str) -> None:
    """Add how many of `what` are asked at once, and whether a bar is shown."""
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=whole,
        default=CONCURRENCY,
        help=f"maximum number of {what} in flight (default: {CONCURRENCY})",
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="show no progress bar (it is only shown on a terminal)"
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add a file of answers, and where its pictures are."""
    parser.add_argument("results", metavar="RESULTS", type=Path, help="a file that florence bulk wrote")
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="directory that relative paths of pictures start from (default: the current one)",
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
        help="load the model in actors on this cluster: host:port, ray://host:port or auto (default: "
        "RAY_ADDRESS; without it, a cluster is started here)",
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
        help="GPUs of each actor, also a fraction (default: 1, or 0 if the cluster has no GPU)",
    )
    group.add_argument(
        "--cpus-per-actor",
        metavar="N",
        type=_amount,
        help="CPU cores of each actor, and its threads without a GPU (default: an equal share of all cores)",
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
        help="a new or empty directory (default for txt: beside each picture)",
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="only answers of this task (name or token); may be given again",
    )
    _add_labels(parser)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label-map",
        metavar="FILE",
        type=Path,
        help="ids of labels: a .txt with one label per line, JSON or YAML with ids by label, or a COCO file",
    )
    parser.add_argument(
        "--only-labels",
        action="store_true",
        help="leave out labels that --label-map lacks (default: an error)",
    )
