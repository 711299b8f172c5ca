"""What answers the questions of `florence evaluate`: a model loaded here or a service, and its answers, which
are kept as `florence bulk` keeps them, so that a second run asks only for the missing ones.

Knows nothing about figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from florence.answers.files import read_answers
from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Ask
from florence.bulk.store import Store
from florence.cli.asking import find_task, model_settings, open_asker, question_options, read_options
from florence.client import Failure, PictureMap
from florence.errors import FlorenceError, RequestError, quote
from florence.evaluation.files.examples import Example
from florence.types.answer import TaskAnswer
from florence.types.options import RequestParameters
from florence.types.tasks import INPUT_SLOT, Input, Task, prompt_task

AskKey = tuple[str, str, str | None, str | None]
"""The picture's path, the task's token, the text, the region."""

_TELLING: Final = ("model", "revision", "base", "adapter", "dtype", "input_size", "pictures", "fast_jpeg")
"""The settings that change answers."""


@dataclass(frozen=True)
class Side:
    """One answerer of a command line. `name`: as given there. `arguments`: the command line's, with what
    --compare changes for this answerer."""

    name: str
    arguments: argparse.Namespace

    @property
    def url(self) -> str | None:
        return cast(str | None, self.arguments.url)

    def asked(self, task: Task) -> dict[str, Any]:
        """What the answers depend on, for JSON: a run continues an earlier one only if this is the same."""
        options = read_options(self.arguments).model_dump(mode="json", exclude_none=True)
        if self.url:
            return {"url": self.url, "task": task.token, "options": options}
        settings = model_settings(self.arguments).model_dump(mode="json", include=set(_TELLING))
        return {**settings, "task": task.token, "options": options}

    @property
    def temperature(self) -> float:
        """What the log-odds of scores are divided by here; 1 for a service, which does not report its own."""
        return 1.0 if self.url else model_settings(self.arguments).score_temperature


def read_sides(arguments: argparse.Namespace) -> list[Side]:
    """The answerer that the arguments name, or the two of --compare. Raises RequestError for a malformed
    one."""
    if not arguments.compare:
        return [Side(arguments.url or "answer", arguments)]
    return [Side(text, _changed(arguments, text)) for text in arguments.compare]


def _changed(arguments: argparse.Namespace, text: str) -> argparse.Namespace:
    """A copy of the arguments, changed by `text`: a URL, a checkpoint, or NAME=VALUE,... of options and
    settings."""
    pairs = dict(_pair(part) for part in text.split(","))
    changed = argparse.Namespace(**vars(arguments))
    changed.settings = {}
    if "url" in pairs:
        changed.url, changed.model = pairs.pop("url"), None
    elif "model" in pairs:
        # The arguments' revision is one of another checkpoint.
        changed.url = changed.model = changed.settings["revision"] = None
    for name, text_of_value in pairs.items():
        value = text_of_value or None  # `adapter=` means no adapter
        is_setting = name in _TELLING or name not in RequestParameters.model_fields
        if changed.url is None and is_setting:
            changed.settings[name] = value
        elif name in RequestParameters.model_fields:
            setattr(changed, name, value)
        else:
            raise RequestError(f"{name} is a setting of the service, in --compare {quote(text)}")
    return changed


def _pair(part: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if "://" in name or not equals:
        return ("url" if "://" in part else "model"), part
    return name.strip(), value


def answer_all(
    side: Side, task: Task, questions: Sequence[Example], out: Path | None
) -> tuple[list[TaskAnswer[Any] | None], list[Failure]]:
    """Each question's answer, None where it failed, and the failures.

    `out`: a file of answers; what it holds is not asked again, and new answers are appended. None: nothing is
    kept. Raises RequestError where `out` holds something else.
    """
    pairs = _asked(side.arguments, task, questions)
    keys = [key_of(*pair) for pair in pairs]
    asked = dict(zip(keys, pairs, strict=True))
    answers: dict[AskKey, TaskAnswer[Any]] = _kept(out) if out is not None else {}
    missing = {_name(key): key for key in asked if key not in answers}
    failures: list[Failure] = []
    if missing:
        with ExitStack() as stack:
            ask = stack.enter_context(open_asker(side.arguments))
            store = None if out is None else stack.enter_context(Store(out))
            bar = False if side.arguments.no_progress else None
            coming = stack.enter_context(
                PictureMap(
                    lambda name: _answer(ask, *asked[missing[str(name)]]),
                    list(missing),
                    concurrency=side.arguments.concurrency,
                    progress=bar,
                )
            )
            try:
                for name, answer in coming:
                    key = missing[str(name)]
                    answers[key] = answer
                    if store is not None:
                        store.add(*asked[key], answer)
            except KeyboardInterrupt:
                where = "give --out a directory to keep answers" if out is None else f"answers are in {out}"
                raise KeyboardInterrupt(f"interrupted: {where}; the same command asks for the rest") from None
            failures = coming.failures
    return [answers.get(key) for key in keys], failures


def _answer(ask: Ask, item: PictureItem, question: PictureQuestion) -> TaskAnswer[Any]:
    (outcome,) = ask(item, [question])
    if isinstance(outcome, FlorenceError):
        raise outcome
    return outcome


def _kept(out: Path) -> dict[AskKey, TaskAnswer[Any]]:
    Store(out).answered()  # cuts off an incomplete last line
    rows = read_answers(out) if out.exists() else ()
    return {(row.picture, row.task, row.given_text, row.given_region): row for row in rows}


def key_of(item: PictureItem, question: PictureQuestion) -> AskKey:
    """What identifies a question: the same words about the same picture are asked only once."""
    return item.picture, question.task.token, question.text, question.region


def _name(key: AskKey) -> str:
    """A name for messages; different for each key."""
    return " ".join([key[0], *(part for part in key[1:] if part is not None)])


def _asked(
    arguments: argparse.Namespace, task: Task, questions: Sequence[Example]
) -> list[tuple[PictureItem, PictureQuestion]]:
    """Each picture, and the task with the question's text or region; a prompt has the text in the place of
    {input}."""
    options, place = question_options(arguments), read_options(arguments)

    def question(text: str | None) -> PictureQuestion:
        if task.is_prompt:
            filled = task.prompt.replace(INPUT_SLOT, text or "")
            return PictureQuestion(prompt_task(filled, task.kind), options=options)
        if task.input is Input.REGION:
            return PictureQuestion(task, region=text, options=options)
        return PictureQuestion(task, text, options=options)

    return [
        (PictureItem(str(each.path), str(each.path), page=place.page, frame=place.frame), question(each.text))
        for each in questions
    ]


def check_same(out: Path, asked: Mapping[str, Any]) -> None:
    """Write what is asked to the file `out`. Raises RequestError where the file already says something
    else."""
    if out.exists():
        try:
            before = json.loads(out.read_text(encoding="utf-8"))
        except ValueError:  # of a run that was killed while it wrote this
            raise RequestError(f"{out} is damaged: remove it, or name another --out") from None
        if before != asked:
            other = next(name for name in {**before, **asked} if before.get(name) != asked.get(name))
            raise RequestError(
                f"{out.parent} holds answers of another run ({other} was {quote(before.get(other))}); name "
                "another --out"
            )
    out.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


def side_task(side: Side, usual: str | None) -> Task:
    """The task or prompt that the arguments name, else the usual one. Raises RequestError where there is
    none, TaskError where it is unknown."""
    arguments = argparse.Namespace(**vars(side.arguments))
    arguments.task = arguments.task or (None if arguments.prompt else usual)
    if arguments.task is None and arguments.prompt is None:
        raise RequestError("this needs a --task, or a --prompt with {input} where the question goes")
    return find_task(arguments)
