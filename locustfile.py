"""A load test of a florence service: users of its three interfaces, tasks in given proportions, every answer
checked.

    locust --headless --users 16 --spawn-rate 16 --run-time 30s --host http://localhost:8000
    locust V2BinaryUser --headless --users 16 --run-time 30s --tasks "caption=3, <OD>=1" --fresh

V2JsonUser sends the v2 protocol's JSON, V2BinaryUser its binary tensors, TypedUser uploads to the tasks' own
endpoints; the classes named on the command line run, all three where none is named. Users send one request
after the other without a pause, so their number is the number of requests in flight. An invalid answer counts
as a failure, with its reason, and locust ends with status 1. Needs locust and this repository; --fresh needs
Pillow. Knows nothing of the server's code.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from urllib3 import encode_multipart_formdata

from florence.errors import TaskError
from florence.types.tasks import TASKS, Input, Kind, Task

INFER: Final = "/v2/models/florence2/infer"
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
REGION: Final = "<loc_250><loc_250><loc_750><loc_750>"  # the picture's middle, whatever its size
# What the original's JSON holds for each kind of answer: lists of one length, side by side.
ORIGINAL_KEYS: Final = {
    Kind.BOXES: (("bboxes", "labels"),),
    Kind.QUADS: (("quad_boxes", "labels"),),
    Kind.POLYGONS: (("polygons", "labels"),),
    Kind.BOXES_OR_POLYGONS: (("bboxes", "bboxes_labels"), ("polygons", "polygons_labels")),
}
numbers = itertools.count(1)


@dataclass(frozen=True)
class LoadRequest:
    """One request, before it is encoded. `picture`: the bytes of its file. `text`: a text, a region, or
    None."""

    id: str
    picture: bytes
    task: Task
    text: str | None


@dataclass(frozen=True)
class LoadMix:
    """What is sent: pictures and tasks at random, tasks by their weights. `text`: for tasks that take one.
    `fresh`: whether each picture is changed first."""

    pictures: tuple[Path, ...]
    weights: dict[Task, float]
    text: str
    fresh: bool

    def draw(self) -> LoadRequest:
        """The next request."""
        (chosen,) = random.choices(list(self.weights), list(self.weights.values()))
        picture = random.choice(self.pictures)
        data = _changed(picture) if self.fresh else picture.read_bytes()
        text = {Input.NONE: None, Input.TEXT: self.text, Input.REGION: REGION}[chosen.input]
        return LoadRequest(str(next(numbers)), data, chosen, text)


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("florence")
    group.add_argument("--pictures", default="data", metavar="DIR", help="pictures to send (default: data)")
    group.add_argument(
        "--tasks",
        default="",
        metavar="NAME=WEIGHT, ...",
        help="tasks and how often each is asked, such as 'caption=3, <OD>=1' (default: all alike)",
    )
    group.add_argument(
        "--text",
        default="a red circle",
        metavar="TEXT",
        help="for tasks that take one (default: %(default)s)",
    )
    group.add_argument(
        "--fresh",
        action="store_true",
        help="change a pixel of each picture before it is sent: the service remembers what it saw",
    )


@events.init.add_listener
def read_load(environment: Environment, **_: Any) -> None:
    """The command line as a Load, for all users. An error in it ends locust."""
    options: Any = environment.parsed_options
    pictures = sorted(path for path in Path(options.pictures).glob("*") if path.suffix.lower() in SUFFIXES)
    if not pictures:
        sys.exit(f"locustfile.py: there are no pictures in {options.pictures!r}; name others with --pictures")
    try:
        weights = read_weights(options.tasks)
    except (TaskError, ValueError) as error:
        sys.exit(f"locustfile.py: --tasks is like 'caption=3, <OD>=1': {error}")
    FlorenceUser.load = LoadMix(tuple(pictures), weights, options.text, options.fresh)


def read_weights(text: str) -> dict[Task, float]:
    """Weights by task, from `caption=3, <OD>=1`; a name alone weighs 1, and an empty text is all tasks alike.
    Raises TaskError, ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pairs = [part.partition("=") for part in parts]
    weights = {TASKS.resolve(name.strip()): float(weight or 1) for name, _, weight in pairs}
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or (
        weights and not any(weights.values())
    ):
        raise ValueError("weights are 0 or more, one of them above 0")
    return weights or dict.fromkeys(TASKS.values(), 1.0)


def _changed(path: Path) -> bytes:
    """The picture as a JPEG, one pixel of it set at random, so that the service has not seen it before."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    place = random.randrange(picture.width), random.randrange(picture.height)
    picture.putpixel(place, tuple(random.randbytes(3)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


class FlorenceUser(FastHttpUser):
    """Sends a request, waits for the answer, checks it, and sends the next one."""

    abstract = True
    network_timeout = 320.0  # longer than the service's own limit, whose message says more
    load: ClassVar[LoadMix]
    label: ClassVar[str]  # of a task's requests in locust's table; its first word is the interface

    @task
    def ask(self) -> None:
        question = self.load.draw()
        path, body, headers = self.request(question)
        if key := os.environ.get("FLORENCE_API_KEY"):
            headers = {**headers, "Authorization": f"Bearer {key}"}
        with self.client.post(
            path, data=body, headers=headers, name=self.label.format(question.task), catch_response=True
        ) as reply:
            if reply.status_code == 200:
                problem = self._problem(reply, question)
            elif reply.status_code:  # locust itself reports broken connections
                problem = f"{reply.status_code}: {reply.text[:200]}"
            else:
                return
            if problem:
                reply.failure(problem)

    def request(self, question: LoadRequest) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers."""
        raise NotImplementedError

    def problem(self, reply: Any, question: LoadRequest) -> str | None:
        """What is wrong with an answer of status 200; None where nothing is. Raises ValueError, LookupError
        and TypeError for one of another shape."""
        raise NotImplementedError

    def _problem(self, reply: Any, question: LoadRequest) -> str | None:
        try:
            return self.problem(reply, question)
        except (ValueError, LookupError, TypeError) as error:
            return f"no {self.label.split()[0]} answer ({error!r}): {reply.content[:200]!r}"


class V2JsonUser(FlorenceUser):
    """The v2 protocol in JSON, the picture in base64: as most clients of Triton send it."""

    label = "v2 JSON    {0.token}"

    def request(self, question: LoadRequest) -> tuple[str, bytes, dict[str, str]]:
        tensors = [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
            for name, value in _values(question, base64.b64encode(question.picture).decode())
        ]
        body = json.dumps({"id": question.id, "inputs": tensors}).encode()
        return INFER, body, {"Content-Type": "application/json"}

    def problem(self, reply: Any, question: LoadRequest) -> str | None:
        content = json.loads(reply.content)
        text = content["outputs"][0]["data"][0]
        return _original_problem(content.get("id"), text, question)


class V2BinaryUser(FlorenceUser):
    """The v2 protocol in binary tensors, the picture as its own bytes: as Triton's own client sends it."""

    label = "v2 binary  {0.token}"

    def request(self, question: LoadRequest) -> tuple[str, bytes, dict[str, str]]:
        inputs, tail = [], b""
        for name, value in _values(question, question.picture):
            data = value if isinstance(value, bytes) else value.encode()
            packed = len(data).to_bytes(4, "little") + data
            size = {"binary_data_size": len(packed)}
            inputs.append({"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": size})
            tail += packed
        content = {"id": question.id, "inputs": inputs, "parameters": {"binary_data_output": True}}
        head = json.dumps(content).encode()
        return INFER, head + tail, {"Inference-Header-Content-Length": str(len(head))}

    def problem(self, reply: Any, question: LoadRequest) -> str | None:
        length = int(reply.headers["Inference-Header-Content-Length"])
        content, packed = json.loads(reply.content[:length]), reply.content[length:]
        size = content["outputs"][0]["parameters"]["binary_data_size"]
        if not size == len(packed) == 4 + int.from_bytes(packed[:4], "little"):
            raise ValueError(f"the tensor has {len(packed)} bytes")
        return _original_problem(content.get("id"), packed[4:], question)


class TypedUser(FlorenceUser):
    """A task's own endpoint, the picture as an upload."""

    label = "typed      /{0.name}"

    def request(self, question: LoadRequest) -> tuple[str, bytes, dict[str, str]]:
        fields: dict[str, Any] = {"image": ("picture", question.picture)}
        if question.text is not None:
            fields["text" if question.task.input is Input.TEXT else "region"] = question.text
        body, kind = encode_multipart_formdata(fields)
        return f"/{question.task.name}", body, {"Content-Type": kind}

    def problem(self, reply: Any, question: LoadRequest) -> str | None:
        content = json.loads(reply.content)
        task, kind = content["task"], content["result"]["kind"]
        if task != question.task.token:
            return f"an answer of {task}"
        return None if kind in question.task.kind.split("_or_") else f"a result of the kind {kind}"


def _values(question: LoadRequest, picture: Any) -> list[tuple[str, Any]]:
    values = {"INPUT_IMAGE": picture, "TASK_PROMPT": question.task.token, "TEXT_PROMPT": question.text}
    return [(name, value) for name, value in values.items() if value is not None]


def _original_problem(id: str | None, text: str | bytes, question: LoadRequest) -> str | None:
    """What is wrong with the original's JSON: it is keyed by the task's token and holds that task's lists."""
    if id != question.id:
        return f"the answer of request {id}, not of {question.id}"
    try:
        answer = json.loads(text)
    except ValueError:
        return f"the output is not JSON: {text[:200]!r}"
    if not isinstance(answer, dict) or list(answer) != [question.task.token]:
        return f"the output is not keyed by {question.task.token}: {text[:200]!r}"
    result = answer[question.task.token]
    if question.task.kind is Kind.TEXT:
        return None if isinstance(result, str) else f"the answer is no text: {text[:200]!r}"
    try:
        fits = all(len(result[a]) == len(result[b]) for a, b in ORIGINAL_KEYS[question.task.kind])
    except (LookupError, TypeError):
        fits = False
    return None if fits else f"the answer's lists don't fit: {text[:200]!r}"
