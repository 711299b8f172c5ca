"""The typed client with real servers: the fake model for all tasks, the bundled checkpoint once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
from PIL import Image
from serving import ROOT, Server

from florence.client import AsyncClient, Client
from florence.errors import FlorenceError, ImageTooLarge, RequestError
from florence.types.analysis import TaskFailure
from florence.types.answer import TaskAnswer
from florence.types.results import Detections, OcrRegions, Segmentation, Text
from florence.types.tasks import TASKS, Input, Kind, Task

pytestmark = pytest.mark.slow

PICTURE = ROOT / "data" / "scene_02.png"
ALL = list(TASKS.values())
TYPES = {
    Kind.TEXT: Text,
    Kind.BOXES: Detections,
    Kind.QUADS: OcrRegions,
    Kind.POLYGONS: Segmentation,
    Kind.BOXES_OR_POLYGONS: Segmentation,  # the fake's answer
}


@pytest.fixture(scope="module")
def server(fake_server: Server) -> Server:
    """The fake server."""
    return fake_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    """A client of the fake server."""
    with Client(server.url) as made:
        yield made


def given(task: Task) -> dict[str, Any]:
    """The text or region for the task."""
    if task.input is Input.TEXT:
        return {"text": 'null "twelve" 12'}
    return {"region": np.array([1.5, 2, 30, 40])} if task.input is Input.REGION else {}


def test_many_tasks_on_one_picture_in_one_call(server: Server, client: Client) -> None:
    """Many tasks with texts and regions are one call; a failed task is a TaskFailure, and asyncio gives the
    same."""
    asks = [task.name if not given(task) else (task.token, next(iter(given(task).values()))) for task in ALL]
    answers = client.analyze(PICTURE, [*asks, ("caption", "a text")], num_beams=1)
    assert [answer.task for answer in answers] == [*TASKS, "<CAPTION>"]
    for task, answer in zip(ALL, answers, strict=False):
        assert isinstance(answer, TaskAnswer)
        assert type(answer.result) is TYPES[task.kind]
    failure = answers[-1]
    assert isinstance(failure, TaskFailure)
    assert (failure.status, "takes no" in failure.error) == (400, True)
    with pytest.raises(RequestError, match="not a picture"):
        client.analyze(b"no picture", ["caption", "ocr"])

    async def ask() -> list[str]:
        async with AsyncClient(server.url) as awaited:
            return [answer.task for answer in await awaited.analyze(PICTURE, asks)]

    assert asyncio.run(ask()) == list(TASKS)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_its_method(client: Client, task: Task) -> None:
    """Each task's method gives its own result type, and `run` by token gives the same result."""
    answer = getattr(client, task.name)(PICTURE, num_beams=1, early_stopping=False, **given(task))
    assert answer.task == task.token
    assert type(answer.result) is TYPES[task.kind]
    assert client.run(PICTURE, task.token, **given(task)).result == answer.result


def test_asyncio_gives_the_same(server: Server, client: Client) -> None:
    """All tasks at once over one AsyncClient give the same results."""

    async def ask() -> list[Any]:
        async with AsyncClient(server.url + "/") as waiting:
            assert await waiting.ready()
            assert (await waiting.server())["name"] == "florence"
            assert await waiting.info() == client.info()
            calls = [getattr(waiting, task.name)(PICTURE, **given(task)) for task in TASKS.values()]
            return [answer.result for answer in await asyncio.gather(*calls)]

    waited = [getattr(client, task.name)(PICTURE, **given(task)).result for task in TASKS.values()]
    assert asyncio.run(ask()) == waited


@pytest.mark.parametrize(
    "picture",
    [PICTURE, str(PICTURE), PICTURE.read_bytes(), Image.new("L", (8, 6)), np.zeros((6, 8, 3), np.uint8)],
    ids=lambda picture: type(picture).__name__,
)
def test_every_kind_of_picture_arrives(client: Client, picture: Any) -> None:
    """Each form of picture arrives with its size."""
    with Image.open(PICTURE) as image:
        size = image.size if isinstance(picture, Path | str | bytes) else (8, 6)
    seen = client.caption(picture).image_size
    assert (seen.width, seen.height) == size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "caption", "num_beams": 99}, "num_beams must be an integer from 1 to 8, got 99"),
        ({"task": "caption", "beams": 1}, "unknown field 'beams'"),
        ({"task": "caption", "text": "a car"}, "<CAPTION> takes no text"),
        ({"task": "region_to_ocr"}, "<REGION_TO_OCR> needs a region"),
        ({"task": "region_to_ocr", "region": (1, 2, 1, 4)}, "is empty: x2 must be above x1"),
        ({"task": "region_to_ocr", "region": (1, 2, 10**6, 4)}, "is not inside the picture"),
    ],
)
def test_the_services_refusals_arrive_word_for_word(
    client: Client, options: dict[str, Any], words: str
) -> None:
    """The service's refusals are raised with their message."""
    with pytest.raises(RequestError, match=words):
        client.run(PICTURE, **options)


def test_bytes_that_are_no_picture_and_too_many_of_them(client: Client) -> None:
    """Bytes that are not a picture, and too many bytes, are refused with their own errors."""
    with pytest.raises(RequestError, match=r"not a picture|format"):
        client.caption(b"hello")
    with pytest.raises(ImageTooLarge, match="FLORENCE_MAX_BODY_BYTES"):
        client.caption(bytes(4_000_000))


def test_many_pictures(client: Client, tmp_path: Path) -> None:
    """`map` answers the good pictures and lists the bad ones as failures."""
    text, missing = tmp_path / "text.png", tmp_path / "missing.png"
    text.write_text("no picture")
    pictures = [PICTURE, text, *[PICTURE] * 20, missing]
    mapped = client.map(pictures, "object_detection", concurrency=8, num_beams=1)
    found = list(mapped)
    assert len(found) == 21
    assert all(isinstance(answer.result, Detections) for _, answer in found)
    assert {failure.picture for failure in mapped.failures} == {text, missing}


def test_many_pictures_awaited(server: Server, tmp_path: Path) -> None:
    """The asyncio `map` answers the good pictures and lists the bad ones as failures."""
    missing = tmp_path / "missing.png"

    async def ask() -> tuple[int, list[Any]]:
        async with AsyncClient(server.url) as client:
            mapped = client.map([PICTURE, missing, PICTURE], "caption", concurrency=2)
            answers = [answer async for _, answer in mapped]
            return len(answers), [failure.picture for failure in mapped.failures]

    assert asyncio.run(ask()) == (2, [missing])


def test_a_stopped_server_is_unreachable() -> None:
    """Each call to a stopped server is an error that names its URL."""
    with Client("http://127.0.0.1:9", retries=0) as client:
        for call in (client.ready, client.server, client.info, lambda: client.caption(PICTURE)):
            with pytest.raises(FlorenceError, match=r"127\.0\.0\.1:9.*can't be reached"):
                call()


def sendable(task: Task) -> dict[str, Any]:
    """The task's input in types that JSON has."""
    region = {"region": [1.5, 2, 30, 40]}
    return {"image": PICTURE, "num_beams": 1, **(region if task.input is Input.REGION else given(task))}


def test_bentomls_own_client_asks_every_task(server: Server, client: Client) -> None:
    """SyncHTTPClient reads the endpoints from the service, and its answers equal the typed ones as JSON."""
    with bentoml.SyncHTTPClient(server.url) as plain:
        assert set(plain.endpoints) == {"analyze", "prompt", *(task.name for task in TASKS.values())}
        for task in TASKS.values():
            answer = getattr(plain, task.name)(**sendable(task))
            assert answer == client.run(PICTURE, task.token, **given(task)).model_dump(mode="json")
        with Image.open(PICTURE) as image:
            assert plain.caption(image=image)["image_size"] == {"width": 477, "height": 331}


def test_bentomls_own_asyncio_client_asks_every_task(server: Server, client: Client) -> None:
    """AsyncHTTPClient's answers equal the typed ones as JSON."""

    async def ask() -> list[Any]:
        async with bentoml.AsyncHTTPClient(server.url) as plain:
            return [await getattr(plain, task.name)(**sendable(task)) for task in TASKS.values()]

    expected = [client.run(PICTURE, task.token, **given(task)) for task in TASKS.values()]
    assert asyncio.run(ask()) == [answer.model_dump(mode="json") for answer in expected]


def test_the_bundled_checkpoint_through_the_client(demo_server: Server) -> None:
    """The bundled checkpoint gives detections with scores and boxes inside the picture."""
    with Client(demo_server.url) as client:
        answer = client.object_detection(PICTURE)
    assert answer.checkpoint.startswith("demo")
    assert answer.result.detections
    for detection in answer.result.detections:
        assert detection.score is not None
        x1, y1, x2, y2 = detection.box
        assert 0 <= x1 < x2 <= answer.image_size.width
        assert 0 <= y1 < y2 <= answer.image_size.height
