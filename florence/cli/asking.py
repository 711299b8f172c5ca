"""Asks a service, or a model loaded here, for `run`, `bulk` and `info`; prints answers.

Torch is imported only where a model is loaded here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from florence.answers.description import describe
from florence.bulk.askers import ModelAsker, ServiceAsker
from florence.bulk.items import PictureItem
from florence.bulk.lines import answer_json
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask
from florence.bulk.services import IdleClients, Services
from florence.cli.telling import tell_lines
from florence.client import Client
from florence.errors import FlorenceError, TaskError, quote
from florence.images.limits import DEFAULT_LIMITS, PDF_DPI, ImageLimits
from florence.types.declared import find_declared
from florence.types.options import RequestParameters, read_request_parameters
from florence.types.tasks import TASKS, Input, Kind, Task, one_input, prompt_task

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2
    from florence.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """`florence run`."""
    _take_words(arguments)
    item, question = _item_of(arguments), read_question(arguments)
    with open_asker(arguments) as ask:
        (answer,) = ask(item, [question])
    if isinstance(answer, FlorenceError):
        raise answer
    if arguments.json:
        print(answer_json(answer))
        return 0
    if arguments.draw is not None:
        answer.result.draw(item.image(_limits(arguments))).save(arguments.draw)
    for line in describe(answer.result):
        print(line)
    return 0


def _item_of(arguments: argparse.Namespace) -> PictureItem:
    """The picture of `florence run`."""
    name, options = arguments.picture, read_options(arguments)
    if name != "-":
        return PictureItem(name, name, page=options.page, frame=options.frame)
    return PictureItem(name, partial(bytes, sys.stdin.buffer.read()), page=options.page, frame=options.frame)


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
def open_asker(arguments: argparse.Namespace, stopped: Event | None = None) -> Iterator[Ask]:
    """A function that asks questions about a picture: at the services of --url, else of a model loaded here.
    Valid until the context ends. `stopped`: as in `Services`."""
    urls = urls_of(arguments)
    if not urls:
        with load_model(arguments) as model:
            yield ModelAsker(model)
    elif len(urls) == 1:
        with closing(IdleClients(lambda: Client(urls[0]))) as clients:
            clients.call(Client.ready)  # an unreachable service is reported once, not for each picture
            yield ServiceAsker(clients.call, _limits(arguments))
    else:
        each = ((url, IdleClients(partial(Client, url, retries=0))) for url in urls)
        services = Services(each, lambda line: tell_lines([line]), stopped=stopped)
        try:
            services.check()
            yield ServiceAsker(services.call, _limits(arguments))
        finally:
            services.close()


def urls_of(arguments: argparse.Namespace) -> list[str]:
    """The distinct URLs of the services to ask; empty where a model is loaded here."""
    given = arguments.url or []
    return [given] if isinstance(given, str) else list(dict.fromkeys(given))


def _limits(arguments: argparse.Namespace) -> ImageLimits:
    """Limits on pictures that are sent, and on documents whose pages are rendered here."""
    return replace(DEFAULT_LIMITS, pdf_dpi=arguments.dpi, max_bytes=max_picture_bytes(arguments))


def max_picture_bytes(arguments: argparse.Namespace) -> int:
    """The largest picture file in bytes: the limit of the first service that answers, or of the model loaded
    here."""
    urls = urls_of(arguments)
    for url in urls:
        with suppress(FlorenceError), Client(url, retries=0) as client:
            return client.info().limits.max_image_bytes
    return DEFAULT_LIMITS.max_bytes if urls else model_settings(arguments).max_image_bytes


def find_task(arguments: argparse.Namespace) -> Task:
    """The task that the arguments name, or one made from their prompt. Raises TaskError."""
    if arguments.prompt is not None:
        return prompt_task(arguments.prompt, arguments.answer_as or Kind.TEXT)
    if arguments.answer_as is not None:
        raise TaskError("--answer-as says how the answer to a --prompt is read; leave it out")
    if known := TASKS.match(arguments.task):
        return known
    tasks = TASKS.extended(_own_tasks(arguments))
    return tasks.match(arguments.task) or find_declared(tasks, arguments.task, "ask it with --prompt")


def _own_tasks(arguments: argparse.Namespace) -> list[Task]:
    """The tasks that the checkpoint itself declares: the first service's, or that of the model loaded
    here."""
    if urls := urls_of(arguments):
        with Client(urls[0]) as client:
            return [row.task() for row in client.info().declared_tasks]
    from florence.runtime.own_tasks import tasks_of_settings

    return tasks_of_settings(model_settings(arguments))


def _take_words(arguments: argparse.Namespace) -> None:
    """Assign the words behind PICTURE: with --task the first one is TEXT. Raises TaskError for too few or too
    many."""
    words = [word for word in (arguments.task, arguments.text) if word is not None]
    if arguments.prompt is None and arguments.named is None and not words:
        raise TaskError("no task given: use --task or --prompt")
    if arguments.prompt is not None and words:
        raise TaskError(f"{quote(words[0])} and --prompt are both given; a prompt replaces a task")
    if arguments.named is not None:
        if len(words) > 1:
            raise TaskError(f"two tasks are given, {quote(arguments.named)} and {quote(words[0])}")
        arguments.task, arguments.text = arguments.named, next(iter(words), None)


def read_question(arguments: argparse.Namespace) -> PictureQuestion:
    """The question that the arguments ask: task, text or region, and options. TEXT may hold the region.
    Raises TaskError."""
    task = find_task(arguments)
    text, region = arguments.text, arguments.region
    options = question_options(arguments)
    one_input(text, region)
    if task.input is Input.REGION:
        return PictureQuestion(task, None, region or text, options)
    if region is not None:
        raise TaskError(f"{task.token} takes no region; leave --region out")
    return PictureQuestion(task, text, None, options)


def question_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """A question's options by name, without `page` and `frame`: those belong to the picture's item."""
    options = read_options(arguments).model_dump(exclude_none=True, exclude={"page", "frame"})
    return options if arguments.timeout_s is None else {**options, "timeout_s": arguments.timeout_s}


def read_options(arguments: argparse.Namespace) -> RequestParameters:
    """The options of a request on a command line. Raises OptionError for a wrong value."""
    names = RequestParameters.model_fields
    return read_request_parameters({name: getattr(arguments, name) for name in names})


def load_model(arguments: argparse.Namespace) -> Florence2:
    """The model that the arguments or the environment name."""
    from florence import Florence2  # torch comes with it

    settings = model_settings(arguments)
    return Florence2.from_settings(
        settings, settings.first_device, pdf_dpi=getattr(arguments, "dpi", PDF_DPI)
    )


def model_settings(arguments: argparse.Namespace) -> Settings:
    from florence.settings import read_settings

    # `max_latency_ms` limits the wait of a service's clients.
    given = getattr(arguments, "settings", {})
    settings = read_settings(lambda make: make(**given)).model_copy(update={"max_latency_ms": None})
    if arguments.model:
        settings = settings.model_copy(update={"model": arguments.model, "revision": None})
    return settings
