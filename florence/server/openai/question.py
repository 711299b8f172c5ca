"""What the messages of a chat completion ask: a picture, and a task or a prompt in words.

Knows OpenAI's messages and content parts; options are read in `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from florence.errors import FieldError, FlorenceError, quote
from florence.server.long_strings import LongString, short_strings
from florence.server.picture import decode_base64
from florence.server.v2.prompts import TAKE_ANY, AcceptedPrompts
from florence.types.declared import find_declared
from florence.types.options import MAX_TEXT_CHARS
from florence.types.tasks import Input, Kind, Task, TaskTable, prompt_task

_ONE_MESSAGE: Final = (
    "the model answers one question about one picture and knows no conversation; send one message, whose "
    "role is user"
)
_HTTP: Final = re.compile(r"\s*https?:", re.IGNORECASE)
_INPUT: Final = re.compile(r"[ \t]*[:\n]")
"""Where a task's name ends and its text or region begins."""


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """What is asked. `picture`: the encoded picture, or an http or https URL. `text`: all texts of the
    message."""

    picture: bytes | str
    text: str


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A task with its text or its region."""

    task: str | Task
    text: str | None = None
    region: str | None = None


def read_question(messages: Any) -> ChatQuestion:
    """The picture and the text in a body's `messages`. Raises FieldError, which names the part that is
    wrong."""
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", f"messages must be a list with one message, got {_short(messages)}")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role != "user":
            where = f"messages[{index}].role"
            raise FieldError(where, f"{where} {_short(role)} is not supported: {_ONE_MESSAGE}")
    if len(messages) > 1:
        raise FieldError("messages", f"{len(messages)} messages are not supported: {_ONE_MESSAGE}")
    if unknown := messages[0].keys() - {"role", "content", "name"}:
        where = f"messages[0].{min(unknown)[:60]}"
        raise FieldError(where, f"{where} is not supported; leave it out")
    texts, pictures = [], []
    for where, part in _parts(messages[0].get("content")):
        if part.get("type") == "text":
            texts.append(_text(part, where))
        elif part.get("type") == "image_url":
            pictures.append(_picture(part, where))
        else:
            kind = _short(part.get("type"))
            raise FieldError(where, f"{where}: {kind} is not supported; parts are text and image_url")
    if len(pictures) != 1:
        raise FieldError("messages", f"a request is about one picture, as image_url; got {len(pictures)}")
    text = "\n".join(texts)
    if not text.strip():
        raise FieldError("messages", "the text is missing: a task's token or name, such as <OD> or caption")
    if len(text) > MAX_TEXT_CHARS:
        raise FieldError(
            "messages", f"the text has {len(text)} characters; up to {MAX_TEXT_CHARS} are allowed"
        )
    return ChatQuestion(pictures[0], text)


def find_asked(text: str, tasks: TaskTable, answer_as: Kind | None, *, any_prompt: bool) -> ChatTask:
    """The task that a text names, with the input behind its token, or behind its name and a colon.

    `answer_as`: if given, the text is a prompt, and its answer is read as this kind. `any_prompt`: whether a
    text that names no task is a prompt, as over v2. Raises TaskError.
    """
    if answer_as is not None:
        return ChatTask(prompt_task(text, answer_as))
    for name, given in _readings(text.strip(), tasks):
        task = tasks.match(name)
        if task is not None:
            return _with_input(task, given)
    if any_prompt:
        return ChatTask(AcceptedPrompts(tasks, True).find(text, None)[0])
    return ChatTask(find_declared(tasks, text, f"send answer_as with it, or {TAKE_ANY}"))


def _readings(text: str, tasks: TaskTable) -> Iterator[tuple[str, str]]:
    """Ways to split a text into a task's name and its input: the whole text is the name; the name is a token;
    the name ends at a colon or at the end of a line."""
    yield text, ""
    for token in sorted(tasks, key=len, reverse=True):
        if token.endswith(">") and text.startswith(token):
            yield token, text.removeprefix(token).lstrip(": \t\n")
    if (end := _INPUT.search(text)) is not None:
        yield text[: end.start()], text[end.end() :].strip()


def _with_input(task: Task, given: str) -> ChatTask:
    if not given:
        return ChatTask(task.token)
    return (
        ChatTask(task.token, region=given) if task.input is Input.REGION else ChatTask(task.token, text=given)
    )


def _parts(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each part of a message's content, with its path for errors. Raises FieldError."""
    if isinstance(content, str | LongString):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        where = "messages[0].content"
        raise FieldError(where, f"{where} must be a list of parts, text and image_url, got {_short(content)}")
    for index, part in enumerate(content):
        where = f"messages[0].content[{index}]"
        if not isinstance(part, dict):
            raise FieldError(where, f"{where} must be an object, got {_short(part)}")
        yield where, part


def _text(part: Mapping[str, Any], where: str) -> str:
    text = short_strings(part.get("text"))
    if not isinstance(text, str):
        raise FieldError(where, f"{where}.text must be a text, got {_short(text)}")
    return text


def _picture(part: Mapping[str, Any], where: str) -> bytes | str:
    """The bytes of a picture in a data URI; an http or https URL unchanged. Raises FieldError."""
    where += ".image_url"
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(url, str | LongString):
        raise FieldError(
            where, f'{where} must be {{"url": "data:image/png;base64,..."}}, got {_short(image)}'
        )
    if image.get("detail") not in (None, "auto"):
        where += ".detail"
        raise FieldError(where, f"{where} is not supported; leave it out. The option tiles cuts a picture")
    if isinstance(url, str) and _HTTP.match(url):
        return url
    try:
        return decode_base64(url)
    except FlorenceError as error:
        raise FieldError(where, f"{where}: {error}") from None


def _short(value: Any) -> str:
    """A value of the body, quoted for an error message; a LongString is only called a long text."""
    return "a long text" if isinstance(value, LongString) else quote(value)
