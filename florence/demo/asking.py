"""Two ways to have questions answered for an evaluation: by a loaded model, or by a running service.

Both give the typed results in the order of the questions. Knows nothing about scenes or measures.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from PIL import Image
from pydantic import TypeAdapter

from florence.errors import EngineError
from florence.florence2 import Florence2
from florence.schemas import Answer, Result
from florence.tasks import Input, get_task

Item = tuple[Image.Image, str, str | None]  # picture, task, its text or region (as `<loc_n>`)
Ask = Callable[[Sequence[Item]], list[Result]]

_AT_ONCE: Final = 4  # requests to a service
_PATIENCE_S: Final = 120.0


def ask_model(model: Florence2) -> Ask:
    """Questions to a loaded model. An answer that fails raises its own error."""
    return lambda items: [answer.result for answer in answers_of(model, items)]


def answers_of(model: Florence2, items: Sequence[Item]) -> list[Answer]:
    """What a loaded model answers, with its tokens. An answer that fails raises its own error."""
    answers = []
    for answer in model.run_many(items):
        if not isinstance(answer, Answer):
            raise answer
        answers.append(answer)
    return answers


def ask_service(url: str) -> Ask:
    """Questions to the typed endpoints of a service. EngineError when it refuses one or is not there."""
    read_result: TypeAdapter[Result] = TypeAdapter(Result)

    def ask_one(item: Item) -> Result:
        image, token, text = item
        task = get_task(token)
        data = io.BytesIO()
        image.save(data, "PNG")
        body = {"image": base64.b64encode(data.getvalue()).decode("ascii")}
        if task.input is not Input.NONE and text is not None:
            body[task.input.value] = text
        request = urllib.request.Request(
            f"{url.rstrip('/')}/{task.name}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as reply:
                return read_result.validate_python(json.load(reply)["result"])
        except urllib.error.HTTPError as error:
            raise EngineError(f"{task.name} answered {error.code}: {error.read().decode()}") from error
        except urllib.error.URLError as error:
            raise EngineError(f"no service answers at {url}: {error.reason}") from error

    def ask(items: Sequence[Item]) -> list[Result]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(ask_one, items))

    return ask
