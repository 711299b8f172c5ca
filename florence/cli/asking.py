"""Asks a service, or a model loaded here, for `run`, `bulk` and `info`; prints answers.

Torch is imported only where a model is loaded here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, cast

from florence.cli.lines import answer_json
from florence.client import Client
from florence.client.exchange import CallOptions
from florence.errors import TaskError
from florence.types.answer import TaskAnswer
from florence.types.options import RequestParameters, read_request_parameters
from florence.types.results import Result, Text
from florence.types.tasks import TASKS, Input

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

Asker = Callable[[Any], TaskAnswer[Any]]
"""From a picture (a path or bytes) to its answer."""


def run(arguments: argparse.Namespace) -> int:
    """`florence run`."""
    picture = sys.stdin.buffer.read() if arguments.picture == "-" else arguments.picture
    with open_asker(arguments) as ask:
        answer = ask(picture)
    if arguments.json:
        print(answer_json(answer))
        return 0
    if arguments.draw is not None:
        answer.result.draw(picture).save(arguments.draw)
    for line in describe(answer.result):
        print(line)
    return 0


def info(arguments: argparse.Namespace) -> int:
    """`florence info`."""
    if arguments.url:
        with Client(arguments.url) as client:
            facts = {"url": arguments.url, "ready": client.ready(), **client.info().model_dump(mode="json")}
    else:
        with load_model(arguments) as model:
            facts = model.info()
    print(json.dumps(facts, indent=2, ensure_ascii=False))
    return 0


@contextmanager
def open_asker(arguments: argparse.Namespace) -> Iterator[Asker]:
    """What answers the arguments' task about a picture, wherever they say, until the context ends."""
    task, text, region = read_question(arguments)
    options = cast(CallOptions, read_options(arguments).model_dump(exclude_none=True))
    if arguments.timeout_s is not None:
        options["timeout_s"] = arguments.timeout_s
    if arguments.url:
        with Client(arguments.url) as client:
            client.ready()  # an unreachable service is reported once, not for each picture
            yield lambda picture: client.run(picture, task, text, region=region, **options)
    else:
        with load_model(arguments) as model:
            given = text if region is None else region
            room = BoundedSemaphore(model.info()["limits"]["max_queue"])  # more would be refused

            def ask(picture: Any) -> TaskAnswer[Any]:
                with room:
                    return model.run(picture, task, given, **options)

            yield ask


def read_question(arguments: argparse.Namespace) -> tuple[str, str | None, str | None]:
    """The task's token, its text, and its region, which may stand in the text's place."""
    task = TASKS.resolve(arguments.task)
    text, region = arguments.text, arguments.region
    if text is not None and region is not None:
        raise TaskError("both a text and a region are given; a task takes one of them")
    if task.input is Input.REGION:
        return task.token, None, region or text
    if region is not None:
        raise TaskError(f"{task.token} takes no region; leave --region out")
    return task.token, text, None


def read_options(arguments: argparse.Namespace) -> RequestParameters:
    """The generation options of a command line; OptionError for a wrong value."""
    names = RequestParameters.model_fields
    return read_request_parameters({name: getattr(arguments, name) for name in names})


def load_model(arguments: argparse.Namespace) -> Florence2:
    """The model that the arguments or the environment name."""
    from florence.runtime.florence2 import Florence2
    from florence.settings import read_settings

    # The limit on the wait is for a service's clients.
    settings = read_settings().model_copy(update={"max_latency_ms": None})
    if arguments.model:
        settings = settings.model_copy(update={"model": arguments.model, "revision": None})
    return Florence2.from_settings(settings, settings.device.partition(",")[0])  # a list: a service's workers


def describe(result: Result) -> Iterator[str]:
    """Lines for a person: the text, or score, label and pixels of each thing."""
    if isinstance(result, Text):
        yield result.text
    for found in result.annotations():
        boxes = ((*polygon[:2], *polygon[4:6]) for polygon in found.polygons)  # two corners of the four
        yield _line(found.score, found.label, [*boxes] if found.shape == "box" else found.polygons)


def _line(score: float | None, label: str, places: Sequence[Sequence[float]]) -> str:
    pixels = "; ".join(" ".join(f"{value:.1f}" for value in place) for place in places)
    return "  ".join(part for part in ("" if score is None else f"{score:.2f}", label, pixels) if part)
