"""Short forms over HTTP: a picture as the whole body, and the answer drawn on it."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from starlette.testclient import TestClient
from v2 import picture

from florence.export import process
from florence.export.annotation import Annotation
from florence.export.drawing import Drawing
from florence.export.process import MAX_SIDE, DrawJob, draw
from florence.images.limits import DEFAULT_LIMITS
from florence.server.typed import drawn
from florence.server.typed.drawn import wants_picture
from florence.types.tasks import TASKS

JPEG = {"content-type": "image/jpeg"}
PICTURE = picture((64, 48))
BOX = Annotation("fake", 0.5, [[10, 10, 50, 10, 50, 40, 10, 40]], "box")


def encoded(size: tuple[int, int], format: str, **options: Any) -> bytes:
    """A gradient of this size in this format."""
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_body_that_is_the_picture_asks_the_same_as_a_form(
    client: TestClient, served: FakeModel, task: Any
) -> None:
    """A picture as the body, with the other fields in the query, asks the same as a form."""
    given = {"none": {}, "text": {"text": "12"}, "region": {"region": "[1, 2, 30, 40]"}}[task.input]
    fields = {**given, "num_beams": "2", "labels": "a, b", "do_sample": "false"}
    form = client.post(f"/{task.name}", files={"image": ("a.png", PICTURE)}, data=fields)
    alone = client.post(f"/{task.name}?{urlencode(fields)}", content=PICTURE, headers=JPEG)
    assert (form.status_code, alone.status_code) == (200, 200), alone.text
    first, second = served.calls
    assert (first.image, first.text, first.options) == (second.image, second.text, second.options)


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("nope=1", PICTURE, "unknown field 'nope'"),
        ("num_beams=2&num_beams=3", PICTURE, "num_beams is sent more than once"),
        ("image=x", PICTURE, "the picture is the body"),
        ("num_beams=99", PICTURE, "num_beams must be an integer from 1 to"),
        ("text=x", PICTURE, "takes no text"),
        ("", b"", "empty"),
        ("", b"GIF89a", "picture"),
    ],
)
def test_a_mistake_in_the_short_form_is_a_400(
    client: TestClient, query: str, body: bytes, message: str
) -> None:
    """A mistake in the short form is a 400, in the words of the other forms."""
    reply = client.post(
        f"/caption?{query}", content=body, headers={"content-type": "application/octet-stream"}
    )
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    assert message in reply.json()["error"]


def test_many_tasks_and_prompts_take_it_too(client: TestClient) -> None:
    """/analyze, /prompt and /tasks take a picture as the body too."""
    asked = {"/analyze": {"tasks": '["caption", "ocr"]'}, "/prompt": {"prompt": "7"}, "/tasks/caption": {}}
    for path, query in asked.items():
        assert client.post(f"{path}?{urlencode(query)}", content=PICTURE, headers=JPEG).status_code == 200


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("image/png", True), ("text/html, IMAGE/PNG;q=0.9", True), ("*/*", False), ("", False),
        ("application/json", False), ("image/png, application/json", False), ("image/*", False),
    ],
)  # fmt: skip
def test_a_picture_is_sent_where_it_alone_is_asked_for(accept: str, wanted: bool) -> None:
    """A drawing is sent only for an explicit image/png; a program that accepts anything gets JSON."""
    assert wants_picture(accept) == wanted


@pytest.mark.parametrize(
    "path", ["/object_detection", "/caption", "/tasks/ocr_with_region", "/prompt?prompt=x"]
)
def test_the_answer_comes_drawn(client: TestClient, path: str) -> None:
    """The drawing is a PNG at least as large as the picture, differs from it, and is the same each time."""
    headers = {**JPEG, "accept": "image/png"}
    first, second = (client.post(path, content=PICTURE, headers=headers) for _ in range(2))
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png"), first.text
    with Image.open(BytesIO(first.content)) as image:
        assert min(image.width - 64, image.height - 48) >= 0
        assert image.tobytes() != Image.open(BytesIO(PICTURE)).tobytes()
    assert first.content == second.content


def test_errors_stay_words(client: TestClient) -> None:
    """A failed request for a drawing gets JSON and its status; many tasks have no single drawing."""
    headers = {**JPEG, "accept": "image/png"}
    assert client.post("/caption?num_beams=99", content=PICTURE, headers=headers).json()["error"]
    reply = client.post('/analyze?tasks=["ocr"]', content=PICTURE, headers=headers)
    assert (reply.status_code, "one task" in reply.json()["error"]) == (400, True)


def test_the_process_draws_as_the_library_does() -> None:
    """The drawing process gives the library's pixels for a picture within the size limit."""
    job, data = DrawJob([BOX], "", DEFAULT_LIMITS), encoded((300, 200), "PNG")
    with Image.open(BytesIO(draw(*DrawJob.unpack(job.pack(data))))) as image:
        assert image.tobytes() == Drawing().draw(data, [BOX], "").tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_picture_is_drawn_smaller(format: str) -> None:
    """A large picture is scaled down, and its shapes with it: a box around the left half stays there."""
    half = Annotation("", None, [[0, 0, 3000, 0, 3000, 1500, 0, 1500]], "area")
    drawn_half = draw(DrawJob([half], "", DEFAULT_LIMITS), encoded((6000, 1500), format))
    with Image.open(BytesIO(drawn_half)) as image:
        assert (image.size[0], image.size[1]) == (MAX_SIDE, MAX_SIDE // 4)
        left, right = (np.ptp(image.getpixel((x, 256))) for x in (image.width // 4, 3 * image.width // 4))
        assert left > 20  # tinted
        assert right < 3


def test_the_drawing_has_the_frame_that_was_asked_for() -> None:
    """The requested frame of an animation is drawn."""
    file = BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    for frame, colour in ((1, (255, 0, 0)), (2, (0, 0, 255))):
        with Image.open(
            BytesIO(draw(DrawJob([], "", DEFAULT_LIMITS, frame=frame), file.getvalue()))
        ) as image:
            assert image.getpixel((20, 15)) == colour


@pytest.mark.parametrize(
    ("program", "status", "message"),
    [
        ("import sys; sys.stdin.buffer.read(); sys.stderr.write('too odd'); sys.exit(3)", 400, "too odd"),
        ("import os; os.abort()", 500, "process for it ended"),
        ("import time; time.sleep(60)", 504, "not drawn within 0.2 s"),
    ],
)
def test_a_process_that_fails_is_an_error_of_its_request(
    monkeypatch: pytest.MonkeyPatch, model: FakeModel, program: str, status: int, message: str
) -> None:
    """A drawing process that refuses, crashes or hangs fails its request with a fitting status; one that
    hangs is killed."""
    import sys

    from florence.server.replies import reply_or_error
    from florence.types.pictures import PictureOptions

    monkeypatch.setattr(drawn, "command", lambda _: [sys.executable, "-c", program])
    answer = model.submit(PICTURE, "<OD>").result()

    async def asked() -> Any:
        late = 0.2 if status == 504 else 60.0
        return await reply_or_error(
            drawn.draw_answer(answer, PICTURE, PictureOptions(), DEFAULT_LIMITS, late)
        )

    reply = asyncio.run(asked())
    assert (reply.status_code, message in bytes(reply.body).decode()) == (status, True), reply.body


def test_the_process_refuses_what_is_no_picture() -> None:
    """The process refuses a broken picture with its own exit status and the reason."""
    import subprocess

    from florence.images.isolated import command

    ran = subprocess.run(
        command(process.__name__),
        input=DrawJob([BOX], "", DEFAULT_LIMITS).pack(b"no picture"),
        capture_output=True,
        env={},
    )
    assert (ran.returncode, ran.stdout) == (process.REFUSED, b"")
    assert b"picture" in ran.stderr
