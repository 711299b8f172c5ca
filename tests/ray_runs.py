"""Run `florence` with fake actors on Ray that echo the picture's name: `python tests/ray_runs.py SECONDS bulk
... --ray ADDRESS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import bulk_runs

from florence.bulk.run import Ask
from florence.cli import bulk_ray, main
from florence.errors import FlorenceError


def make_echo(seconds: float) -> Ask:
    """A function that answers with the picture's name after this time; a picture that can't be read fails."""

    def echo(item: Any, questions: Any) -> Any:
        time.sleep(seconds)
        try:
            item.read()
        except FlorenceError as error:
            return [error] * len(questions)
        return bulk_runs.echo(item, questions)

    return echo


def actor_arguments(seconds: float) -> Callable[[Any], dict[str, Any]]:
    """A function that gives the arguments of the echo actors, in place of those of a model."""
    return lambda arguments: {"make_ask": partial(make_echo, seconds)}


if __name__ == "__main__":
    bulk_ray.actor_arguments = actor_arguments(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
