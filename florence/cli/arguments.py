"""The argument parser of the `florence` command, with its help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from florence import __version__
from florence.cli.bulk_arguments import (
    BULK,
    EXPORT,
    add_bulk,
    add_export,
    add_model,
    add_prompt,
    add_ray,
    add_results,
)
from florence.cli.evaluate import EVALUATE, add_evaluate
from florence.cli.mcp import MCP, add_mcp
from florence.cli.verify import VERIFY, add_verify
from florence.export.annotation import OPACITY
from florence.images.limits import MAX_PDF_DPI, PDF_DPI
from florence.types.filters import ItemFilter
from florence.types.options import RequestParameters, allowed_values
from florence.types.pictures import PictureOptions
from florence.types.tasks import TASKS, Input
from florence.types.tiling import TileOptions

DRAWN_FORMATS: Final = (".png", ".jpg", ".jpeg", ".webp")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_WIDTH: Final = 100
_WORDS: Final = 2  # at most, behind PICTURE: TASK and TEXT
_INPUTS: Final = {Input.NONE: "", Input.TEXT: " TEXT", Input.REGION: " --region"}
_STATUS: Final = (
    "exit status: 0 done; 1 failed while running; 2 wrong arguments or input; "
    "3 some of many pictures\nfailed; 130 interrupted"
)


class Help(argparse.RawDescriptionHelpFormatter):
    """Wraps help at the same width on every terminal, so that the docs can show it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_WIDTH)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "florence",
        description="Microsoft's Florence-2 on pictures: captions, detection, segmentation, OCR.",
        epilog=_STATUS,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"florence {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_bulk(commands)
    _add_draw(commands)
    add_export(_add(commands, "export", *EXPORT))
    _add_where(_add(commands, "info", "say what runs here, or at a service: checkpoint, device, limits"))
    _add_load_data(commands)
    _add_serve(commands)
    _add_convert(commands)
    add_verify(_add(commands, "verify", *VERIFY))
    _add_evaluate(commands)
    _add_mcp(commands)
    return parser


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line; `argv`: None for `sys.argv`. Raises SystemExit where they are
    wrong."""
    parser = make_parser()
    arguments, words = parser.parse_known_args(argv)
    # After an option behind PICTURE argparse no longer assigns TASK and TEXT; they are assigned here.
    behind = [] if arguments.command != "run" else [word for word in words if not word.startswith("-")]
    before = getattr(arguments, "task", None), getattr(arguments, "text", None)
    given = [word for word in before if word is not None]
    if len(behind) < len(words) or len(given) + len(behind) > _WORDS:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if behind:
        arguments.task, arguments.text = (*given, *behind, None)[:2]
    return arguments


def _add(commands: Commands, name: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=Help,
    )


def _add_run(commands: Commands) -> None:
    tasks = "tasks:\n" + "\n".join(f"  {task.name}{_INPUTS[task.input]}" for task in TASKS.values())
    parser = _add(commands, "run", "ask one task about one picture", tasks)
    parser.add_argument("picture", metavar="PICTURE", help="a file; - is standard input")
    parser.add_argument(
        "task",
        metavar="TASK",
        nargs="?",
        help="a task listed below, or one that the checkpoint declares; its token, such as <OD>, also names "
        "it",
    )
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to look for, or the caption to ground")
    _add_task(parser, "the task, in place of TASK", "named")
    _add_region(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    shown.add_argument(
        "--draw", metavar="OUT", type=_drawn_file, help="write the picture with the answer drawn on it"
    )
    _add_options(parser)
    _add_where(parser)


def _add_bulk(commands: Commands) -> None:
    parser = _add(commands, "bulk", *BULK)
    _add_sources(parser)
    add_bulk(parser, partial(_whole, maximum=2**31))
    _add_region(parser)
    _add_options(parser)
    _add_where(parser, many=True)
    add_ray(parser)


def _add_evaluate(commands: Commands) -> None:
    parser = _add(commands, "evaluate", *EVALUATE)
    add_evaluate(parser, partial(_whole, maximum=10**6))
    _add_task(parser, "in place of the subject's usual task")
    _add_options(parser)
    _add_where(parser)


def _add_mcp(commands: Commands) -> None:
    parser = _add(commands, "mcp", *MCP)
    add_mcp(parser)
    _add_where(parser)


def _add_draw(commands: Commands) -> None:
    parser = _add(
        commands,
        "draw",
        "draw the answers in a file of florence bulk on their pictures",
        "Writes OUT/PICTURE_TASK.png for each answer. Answers that can't be drawn are listed;\n"
        "all others are drawn.",
    )
    add_results(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty directory")
    parser.add_argument(
        "--colours",
        metavar="LABEL=COLOUR",
        action="append",
        default=[],
        help="a label's colour, such as car=red or car=#ff0000; may be given again (default: one colour "
        "for each label, the same in all pictures)",
    )
    parser.add_argument(
        "--opacity",
        metavar="VALUE",
        type=float,
        default=OPACITY,
        help=f"opacity of masks, from 0 (only the border) to 1 (default: {OPACITY})",
    )
    parser.add_argument(
        "--overlay", action="store_true", help="draw on a transparent background in place of the picture"
    )
    parser.add_argument(
        "--font", metavar="FILE", help="a TrueType font, for labels that are not in Latin letters"
    )


def _add_load_data(commands: Commands) -> None:
    parser = _add(
        commands,
        "load-data",
        "write pictures as input data for NVIDIA's perf_analyzer",
        "Writes OUT/load_data_TASK.json, with a request for each picture.",
    )
    _add_sources(parser)
    parser.add_argument(
        "--out", metavar="OUT", type=Path, default=Path("load-data"), help="directory (default: load-data)"
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="a task's name or token; may be given again (default: the nine tasks of the Triton deployments)",
    )
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="text, or region as <loc_n>, for the tasks that take one (default: an example)",
    )


def _add_serve(commands: Commands) -> None:
    parser = _add(
        commands,
        "serve",
        "start the service",
        "Its settings are FLORENCE_ variables. gRPC listens on the same address, unless FLORENCE_GRPC_HOST\n"
        "names another, on port FLORENCE_GRPC_PORT (0: no gRPC). BENTOML_HOME is, unless it is set, a\n"
        "folder for this port in the user's cache. Needs the package florence2-server.",
    )
    parser.add_argument("--host", metavar="HOST", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        metavar="PORT",
        type=partial(_whole, maximum=65_535),
        default=8000,
        help="port (default: 8000)",
    )
    add_model(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a picture, a directory, a glob, or a .txt with one path per line (# begins a comment)",
    )


def _add_task(parser: argparse.ArgumentParser, help: str, dest: str = "task") -> None:
    """A task by its name, or a prompt in its place."""
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--task", metavar="TASK", dest=dest, help=help)
    add_prompt(parser, asked)


def _add_region(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--region", metavar="X1,Y1,X2,Y2", help="x1,y1,x2,y2 in pixels (after EXIF rotation), or four <loc_n>"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    generation = parser.add_argument_group("generation options (default: those of the checkpoint)")
    pictures = parser.add_argument_group("how the picture is read (default: as a viewer shows it, on white)")
    tiles = parser.add_argument_group("large pictures with small things (default: not cut)")
    filters = parser.add_argument_group("which items to keep (default: all)")
    for name, field in RequestParameters.model_fields.items():
        options = pictures if name in PictureOptions.model_fields else generation
        options = tiles if name in TileOptions.model_fields else options
        options = filters if name in ItemFilter.model_fields else options
        words, allowed = str(field.description).removesuffix("."), allowed_values(name)
        options.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="N" if "integer" in allowed else "VALUE",
            help=f"{words[0].lower()}{words[1:]} ({allowed})",
        )
    parser.add_argument(
        "--dpi",
        metavar="N",
        type=partial(_whole, maximum=MAX_PDF_DPI),
        default=PDF_DPI,
        help=f"resolution at which pages of PDFs are rendered, dots per inch (default: {PDF_DPI})",
    )
    parser.add_argument("--timeout-s", metavar="S", type=float, help="time limit for each picture, seconds")


def _add_where(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    where = parser.add_mutually_exclusive_group()
    if many:
        where.add_argument(
            "--url",
            metavar="URL",
            action="append",
            help="ask this service; may be given again: each picture goes to the least busy one (default: "
            "load the model here)",
        )
    else:
        where.add_argument("--url", metavar="URL", help="ask this service (default: load the model here)")
    add_model(where)


def _whole(text: str, maximum: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= maximum):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {maximum}, got {text!r}")
    return int(text)


def _drawn_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in DRAWN_FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(DRAWN_FORMATS)}, got {text!r}")
    return path


def _add_convert(commands: Commands) -> None:
    parser = _add(
        commands,
        "convert",
        "convert a pickled checkpoint, or a base and its adapter, to a directory with safetensors",
        "No other command opens a pickle. A separate process with a memory limit reads tensors from it, and\n"
        "nothing else. The result gets the same checks as at service start. Needs florence2-server.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a hub id, or a directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty directory")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--base", metavar="NAME", help="checkpoint with the tokenizer and preprocessor that SOURCE lacks"
    )
    parser.add_argument("--adapter", metavar="NAME", help="LoRA adapter to merge, a hub id or a directory")
    parser.add_argument(
        "--memory-gib",
        metavar="N",
        type=partial(_whole, maximum=2**20),
        default=16,
        help="most memory for opening a pickle, GiB (default: 16)",
    )
