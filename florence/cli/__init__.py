"""The `florence` command: finds the function of a subcommand, and turns its errors into an exit status.

Exit status: 0 done; 1 failed; 2 wrong arguments, settings or request; 3 some of many pictures failed; 130
interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Callable, Sequence

from florence.cli.arguments import read_arguments
from florence.errors import FlorenceError, RequestError, SettingsError, words_of

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
NO_SERVER = (
    "this needs the package florence2-server, which has the model and the service; "
    "with florence2-client alone, --url asks a service that runs elsewhere"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line; returns its exit status. `argv`: None for `sys.argv`. Help, version and
    wrong arguments raise SystemExit."""
    arguments = read_arguments(argv)
    _collect_rarely()
    try:
        return _carry_out(arguments.command)(arguments)
    except (FlorenceError, OSError) as error:
        print(f"florence: {words_of(error)}", file=sys.stderr)
        return WRONG_USE if isinstance(error, RequestError | SettingsError) else FAILED
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("florence."):
            raise
        print(f"florence: {NO_SERVER}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print(f"florence: {stop or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def _collect_rarely() -> None:
    """Make full garbage collections rare: they find nothing in what a command imports, and would take a fifth
    of a short command's time, at the imports and at exit."""
    gc.set_threshold(*gc.get_threshold()[:2], 100)  # of the oldest generation; young garbage goes as ever
    atexit.register(gc.freeze)


def _carry_out(command: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command. A command imports its other modules when it runs, so that --help is
    quick."""
    from florence.cli import asking, bulk, convert, draw, evaluate, export, load_data, mcp, serving, verify

    commands = {
        "run": asking.run,
        "bulk": bulk.bulk,
        "draw": draw.draw,
        "export": export.export,
        "info": asking.info,
        "load-data": load_data.write_load_data,
        "serve": serving.serve,
        "convert": convert.convert,
        "verify": verify.verify,
        "evaluate": evaluate.evaluate,
        "mcp": mcp.mcp,
    }
    return commands[command]
