"""The option `tiles` through every interface: the same items in the same locations, and the number of
tiles."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as over_grpc
from PIL import Image
from serving import ROOT, Server

from florence import Florence2
from florence.answers.answer import Answer
from florence.answers.filtering import Place, items_of
from florence.client import Client
from florence.errors import RequestError
from florence.types.analysis import TaskFailure
from florence.types.answer import TaskAnswer
from florence.types.results import OcrRegions, Text

pytestmark = pytest.mark.slow

GRID = "2x2"
TASKS = ("<OD>", "<OCR>", "<OCR_WITH_REGION>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>")
V2 = "/v2/models/florence2/infer"


@pytest.fixture(scope="module")
def picture() -> bytes:
    """Four scenes of data/ in one picture, larger than any of them."""
    large = Image.new("RGB", (640, 640), "grey")
    for index, name in enumerate(("scene_00.jpg", "scene_01.jpg", "scene_02.png", "scene_04.jpg")):
        scene = Image.open(ROOT / "data" / name).convert("RGB").resize((300, 300))
        large.paste(scene, (10 + 320 * (index % 2), 10 + 320 * (index // 2)))
    file = io.BytesIO()
    large.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def own(picture: bytes) -> Iterator[dict[str, Answer]]:
    """The library's answers by task."""
    with Florence2.load("demo", dtype="float32") as model:
        yield {task: model.run(picture, task, tiles=GRID) for task in TASKS}


@pytest.fixture(scope="module")
def client(demo_server: Server) -> Iterator[Client]:
    """A client of the demo server."""
    with Client(demo_server.url) as opened:
        yield opened


def alike(some: list[Place], others: list[Place]) -> bool:
    """Return whether both have the same labels in the same locations, within the width of a location
    token."""
    return [place.label for place in some] == [place.label for place in others] and all(
        np.allclose(one.bounds, other.bounds, atol=2) for one, other in zip(some, others, strict=True)
    )


def test_things_of_all_tiles_are_found_in_the_whole_pictures_pixels(own: dict[str, Answer]) -> None:
    """Items are found in each quarter, in pixels of the whole picture; the text is that of all pieces."""
    for task, answer in own.items():
        assert answer.tiles == 4, task
        assert (answer.image_size.width, answer.image_size.height) == (640, 640)
        assert answer.usage.picture_tokens == 4 * 26
    middles = [(left + right, top + bottom) for left, top, right, bottom in
               (place.bounds for place in items_of(own["<OD>"].result))]  # fmt: skip
    assert {(x > 640, y > 640) for x, y in middles} == {(a, b) for a in (False, True) for b in (False, True)}
    text, pieces = own["<OCR>"].result, own["<OCR_WITH_REGION>"].result
    assert isinstance(text, Text)
    assert isinstance(pieces, OcrRegions)
    assert text.text.split() == [word for piece in pieces.regions for word in piece.text.split()]


def test_the_typed_endpoints_and_the_client_answer_as_the_library(
    client: Client, picture: bytes, own: dict[str, Answer]
) -> None:
    """The service gives the library's answers, and their JSON has `tiles`."""
    for task, answer in own.items():
        served = client.run(picture, task, tiles=GRID)
        assert served.tiles == 4
        assert alike(items_of(served.result), items_of(answer.result)), task
        assert TaskAnswer.model_validate_json(served.model_dump_json()) == served
    plain = client.object_detection(picture)
    assert plain.tiles == 1


def test_the_original_form_is_the_typed_results(own: dict[str, Answer]) -> None:
    """The original's JSON has the typed result's items, also after a round trip through JSON."""
    found, read = own["<OD>"], own["<OCR>"]
    content = found.florence()["<OD>"]
    assert content["labels"] == [place.label for place in items_of(found.result)]
    assert content["bboxes"] == [list(place.bounds) for place in items_of(found.result)]
    assert Answer.model_validate_json(found.model_dump_json()).florence() == found.florence()
    assert read.florence() == {"<OCR>": read.result.text}  # type: ignore[union-attr]


def test_v2_takes_tiles_as_a_parameter(demo_server: Server, picture: bytes, own: dict[str, Answer]) -> None:
    """v2 takes tiles as a parameter over HTTP and gRPC, also with a filter, and replies with their number."""
    infer = over_grpc.InferInput("INPUT_IMAGE", [1, 1], "BYTES")
    infer.set_data_from_numpy(np.array([[picture]], object))
    prompt = over_grpc.InferInput("TASK_PROMPT", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[b"<OD>"]], object))
    with over_grpc.InferenceServerClient(f"127.0.0.1:{demo_server.grpc_port}") as triton:
        reply = triton.infer("florence2", [infer, prompt], parameters={"tiles": GRID, "pictures": "seen"})
        assert reply.get_response().parameters["tiles"].int64_param == 4
        over = json.loads(reply.as_numpy(reply.get_response().outputs[0].name)[0][0])
    answered = ask_v2(demo_server, picture, "<OD>", tiles=GRID, pictures="seen")
    assert answered["parameters"] == {"tiles": 4}
    content = json.loads(answered["outputs"][0]["data"][0])
    assert content == over
    wanted = own["<OD>"].florence()["<OD>"]
    assert content["<OD>"]["labels"] == wanted["labels"]
    assert np.allclose(content["<OD>"]["bboxes"], wanted["bboxes"], atol=2)
    kept = ask_v2(demo_server, picture, "<OD>", tiles=GRID, pictures="seen", max_items=1)
    assert len(json.loads(kept["outputs"][0]["data"][0])["<OD>"]["labels"]) == 1
    assert "parameters" not in ask_v2(demo_server, picture, "<OD>")


def test_a_stream_of_tiles_is_one_event(demo_server: Server, picture: bytes) -> None:
    """A stream of tiles is one event even with one beam, since nothing is final before all tiles are done."""
    body = {"INPUT_IMAGE": base64_of(picture), "TASK_PROMPT": "<OCR>", "num_beams": 1, "tiles": GRID}
    url = f"{demo_server.url}/v2/models/florence2/generate_stream"
    events = requests.post(url, json=body, timeout=60).text.strip().split("\n\n")
    assert len(events) == 1
    assert json.loads(events[0].removeprefix("data: "))["parameters"] == {"tiles": 4}


def test_what_cant_be_cut_is_a_400(client: Client, demo_server: Server, picture: bytes) -> None:
    """A task without tiles is a 400 that says what to change; among many tasks only such tasks fail."""
    with pytest.raises(RequestError, match="<CAPTION> can't be asked in tiles; leave tiles out"):
        client.caption(picture, tiles=GRID)
    with pytest.raises(RequestError, match=r"up to 128 are allowed .*FLORENCE_MAX_TILES"):
        client.ocr(picture, tiles="auto", tile_scale=0.1)
    caption, found = client.analyze(picture, ["caption", "object_detection"], tiles=GRID)
    assert isinstance(caption, TaskFailure)
    assert caption.status == 400
    assert isinstance(found, TaskAnswer)
    assert found.tiles == 4
    refused = requests.post(demo_server.url + V2, json=v2_body(picture, "<CAPTION>", tiles=GRID), timeout=60)
    assert refused.status_code == 400


def test_the_command_line_has_it(
    demo_server: Server, picture: bytes, tmp_path: Path, florence: Callable[..., tuple[int, str, str]]
) -> None:
    """`run` and `bulk` have the option."""
    file, out = tmp_path / "large.png", tmp_path / "answers.jsonl"
    file.write_bytes(picture)
    where = ("--tiles", GRID, "--url", demo_server.url)
    status, printed, error = florence("run", file, "object_detection", "--json", *where)
    assert (status, error) == (0, "")
    assert json.loads(printed)["tiles"] == 4
    status, _, _ = florence("bulk", file, "--task", "ocr", "--out", out, "--no-progress", *where)
    assert status == 0
    assert json.loads(out.read_text())["tiles"] == 4


def base64_of(data: bytes) -> str:
    """The data as base64 text."""
    return base64.b64encode(data).decode()


def v2_body(picture: bytes, task: str, **parameters: Any) -> dict[str, Any]:
    """The body of a v2 request."""
    values = {"INPUT_IMAGE": base64_of(picture), "TASK_PROMPT": task}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
    ]
    return {"inputs": inputs, "parameters": parameters}


def ask_v2(server: Server, picture: bytes, task: str, **parameters: Any) -> Any:
    """The reply to a v2 request."""
    reply = requests.post(server.url + V2, json=v2_body(picture, task, **parameters), timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()
