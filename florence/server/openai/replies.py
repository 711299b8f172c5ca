"""The bodies of a chat completion, whole and in chunks, and of the list of models.

Knows OpenAI's shapes; answers are `florence.types`'.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from florence.answers.description import describe
from florence.server.events import EVENTS, build_event
from florence.server.replies import json_bytes
from florence.types.answer import TaskAnswer
from florence.types.results import Result

DONE = build_event(b"[DONE]")


def completion(model: str, answer: TaskAnswer[Result]) -> dict[str, Any]:
    """The whole answer: text in `content`, the typed result in `florence2_result`."""
    content = "\n".join(describe(answer.result))
    message = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "florence2_result": answer.result.model_dump(mode="json"),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    head = _head(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model, "chat.completion")
    return {**head, "choices": [choice], **_facts(answer)}


@dataclass
class ChatChunks:
    """The events of one stream. `with_usage`: whether the last chunk has the usage."""

    model: str
    with_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    begun: bool = False

    def text(self, text: str) -> bytes:
        """An event with the next piece of the text."""
        return self._event([self._choice({"content": text})])

    def end(self, answer: TaskAnswer[Result]) -> Response:
        """The last events: the typed result and the reason of the end, then the usage."""
        delta = {"florence2_result": answer.result.model_dump(mode="json")}
        facts = _facts(answer)
        usage = facts.pop("usage")
        events = [self._event([self._choice(delta, answer.finish_reason)], facts)]
        if self.with_usage:
            events.append(self._event([], {"usage": usage}))
        return Response(b"".join((*events, DONE)), media_type=EVENTS)

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if not self.begun:
            self.begun, delta = True, {"role": "assistant", "content": "", **delta}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self.with_usage else {}
        head = _head(self.id, self.created, self.model, "chat.completion.chunk")
        body = {**head, "choices": choices, **usage, **(more or {})}
        return build_event(json_bytes(body))


def model_object(name: str, checkpoint: str, created: int) -> dict[str, Any]:
    """A model in the list. `created`: when this worker was ready, seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "florence", "root": checkpoint}


def _head(id: str, created: int, model: str, kind: str) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": created, "model": model}


def _facts(answer: TaskAnswer[Result]) -> dict[str, Any]:
    """What both kinds of reply say about an answer, beside its choice; `florence2`: as the typed endpoints
    say it."""
    read = answer.usage.picture_tokens + answer.usage.prompt_tokens
    written = answer.usage.generated_tokens
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    said = set(TaskAnswer[Result].model_fields) - {"result", "usage", "finish_reason", "checkpoint"}
    return {
        "system_fingerprint": answer.checkpoint,
        "usage": usage,
        "florence2": answer.model_dump(mode="json", include=said),
    }
