"""`make demo`: starts the service with the bundled checkpoint, asks it about the pictures in `data/`, and
stops it. It measures nothing.

Each of the nine tasks of the deployment that florence replaces is asked twice: through the v2 endpoint, as
that deployment's users do, and through its typed endpoint. Request and answer are printed. The exit status is
0 when all were answered; otherwise the server's log is printed.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from bodies import INFER, as_text, v2_request
from serving import ROOT, serving

from florence.types.tasks import TASKS, TRITON_TASKS

SERVICE = "florence.server.entry:service"
REQUEST_S = 120.0
WIDTH = 100
"""The number of printed characters of an answer."""

NEXT = """
To go on: `FLORENCE_MODEL=demo make serve` keeps it running, with a page at http://localhost:8000/;
`.venv/bin/florence run data/scene_02.png object_detection --model demo --draw seen.png` draws an answer."""


class TourError(Exception):
    """The service did not answer as it should."""


def main() -> int:
    """Run the tour; return exit status 0 if every request was answered."""
    print(f"$ FLORENCE_MODEL=demo bentoml serve {SERVICE}", flush=True)
    began = time.monotonic()
    with (
        serving(SERVICE, FLORENCE_MODEL="demo", FLORENCE_REVISION="", FLORENCE_GRPC_PORT="0") as server,
        httpx.Client(timeout=REQUEST_S, trust_env=False) as client,
    ):
        print(f"ready after {time.monotonic() - began:.1f} s at {server.url}", flush=True)
        try:
            answered = sum(_ask(client, server.url, number, task) for number, task in enumerate(TRITON_TASKS))
        except (TourError, httpx.HTTPError) as error:
            print(f"\nthe demo failed: {error}\n\nthe server's log:", file=sys.stderr)
            print(server.log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            return 1
    print(f"\n{answered} requests answered. The service has stopped.\n{NEXT}")
    return 0


def _ask(client: httpx.Client, base_url: str, number: int, task: str) -> int:
    """Ask one task through both kinds of endpoint; return the number of answers."""
    picture, text = _question(task, number)
    wanted = task if text is None else f'{task} "{text}"'
    print(f"\n{picture.name}  {wanted}", flush=True)
    request = {"id": uuid4().hex, **v2_request(as_text(picture.read_bytes()), task, text)}
    v2 = _answer(client.post(f"{base_url}{INFER}", json=request))
    _show("v2", json.loads(v2["outputs"][0]["data"][0])[task])
    path = TASKS.resolve(task).name
    fields = {} if text is None else {"text": text}
    upload = {"image": (picture.name, picture.read_bytes())}
    typed = _answer(client.post(f"{base_url}/{path}", files=upload, data=fields))
    if typed["task"] != task:
        raise TourError(f"/{path} answered for {typed['task']}")
    _show(f"/{path}", typed["result"])
    return 2


def _question(task: str, number: int) -> tuple[Path, str | None]:
    """One of the pictures that have a question of this task, and the question's text."""
    questions = json.loads((ROOT / "data" / "scene_questions.json").read_text(encoding="utf-8"))
    asked = [(ROOT / "data" / name, row) for name, rows in questions.items() for row in rows]
    fitting = [(picture, row["text"]) for picture, row in asked if row["task"] == task]
    if not fitting:
        raise TourError(f"data/scene_questions.json has no question for {task}")
    return fitting[number % len(fitting)]


def _answer(response: httpx.Response) -> Any:
    """The JSON of a successful response."""
    if not response.is_success:
        raise TourError(f"{response.request.url} answered {response.status_code}: {response.text}")
    return response.json()


def _show(endpoint: str, result: object) -> None:
    """Print a shortened answer."""
    text = result if isinstance(result, str) else json.dumps(_rounded(result), ensure_ascii=False)
    print(f"  {endpoint:>30}  {textwrap.shorten(text, WIDTH, placeholder=' ...')}", flush=True)


def _rounded(value: Any) -> Any:
    """The value with rounded numbers."""
    if isinstance(value, float):
        return round(value, 3 if abs(value) < 2 else 1)
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


if __name__ == "__main__":
    sys.exit(main())
