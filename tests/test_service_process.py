"""A real `bentoml serve` with the demo checkpoint, and its clients."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import bentoml
import httpx
import pytest
import requests
from PIL import Image
from seed import run_program, seed_program
from serving import ROOT, Server
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow

PICTURES = sorted(path for path in (ROOT / "data").iterdir() if path.suffix in (".jpg", ".png"))
INFER = "/v2/models/florence2/infer"


@pytest.fixture
def server(demo_server: Server) -> Server:
    """The demo server."""
    return demo_server


def infer_request(picture: bytes, task: str = "<CAPTION>", **members: object) -> dict[str, object]:
    """A v2 request for this picture and task."""
    values = {"INPUT_IMAGE": base64.b64encode(picture).decode(), "TASK_PROMPT": task}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in values.items()
    ]
    return {"inputs": inputs, **members}


def test_the_seeds_first_program_runs_unchanged(server: Server, shared: Path) -> None:
    """The replaced deployment's program for one picture runs with only address and path changed."""
    program = seed_program(shared, 0, server, **{"/path/to/your/image.png": str(PICTURES[0])})
    printed = run_program(program)
    assert re.fullmatch(r"\{'<CAPTION>': '.+'\}\n", printed)


def test_the_seeds_program_for_many_pictures_runs_unchanged(server: Server, shared: Path) -> None:
    """The replaced deployment's program for a directory gets an answer for each file."""
    program = seed_program(shared, 1, server, **{"/path/to/image/directory/": str(PICTURES[0].parent)})
    pictures = [str(path) for path in PICTURES]
    printed = run_program(
        program.replace("if path.is_file():", f"if str(path) in {pictures!r}:")
        + "\nprint(json.dumps(results))"
    )
    results = json.loads(printed)
    assert set(results) == set(pictures)
    assert all(set(answer) == {"<CAPTION>"} for answer in results.values())


def test_v2_and_typed_endpoint_give_the_same_answer(server: Server) -> None:
    """v2 and /caption give the same text, and both name the checkpoint."""
    picture = PICTURES[0].read_bytes()
    v2 = httpx.post(server.url + INFER, json=infer_request(picture, id="7"), timeout=60)
    typed = httpx.post(server.url + "/caption", files={"image": picture}, timeout=60)
    assert v2.json()["id"] == "7"
    assert json.loads(v2.json()["outputs"][0]["data"][0]) == {"<CAPTION>": typed.json()["result"]["text"]}
    assert v2.headers["florence-checkpoint"] == typed.json()["checkpoint"] == "demo"
    assert "<CAPTION> answered by demo: stop" in server.log


def test_detection_answers_in_pixels_of_the_turned_picture(server: Server) -> None:
    """Boxes are in pixels of the picture after EXIF rotation."""
    with Image.open(PICTURES[0]) as picture:
        turned, file = picture.convert("RGB"), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(file, "JPEG", exif=exif)
    reply = httpx.post(
        server.url + "/object_detection", files={"image": ("a", file.getvalue(), "image/jpg")}, timeout=60
    )
    width, height = turned.size
    assert reply.json()["image_size"] == {"width": height, "height": width}
    for detection in reply.json()["result"]["detections"]:
        assert 0 <= detection["box"][0] <= height
        assert 0 <= detection["box"][1] <= width


def test_bentomls_clients_upload_and_read(server: Server) -> None:
    """BentoML's two clients work without the service's code."""
    with bentoml.SyncHTTPClient(server.url) as client:
        text = client.caption(image=PICTURES[0], num_beams=1)["result"]["text"]
        regions = client.region_to_category(PICTURES[0], region=[10, 20, 100, 200])
        assert regions["task"] == "<REGION_TO_CATEGORY>"
        with pytest.raises(
            bentoml.exceptions.InvalidArgument, match="num_beams must be an integer from 1 to 8"
        ):
            client.caption(image=PICTURES[0], num_beams=9)

    async def call() -> str:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            return str((await client.caption(image=PICTURES[0], num_beams=1))["result"]["text"])

    assert asyncio.run(call()) == text


def test_good_requests_are_not_disturbed_by_bad_ones(server: Server) -> None:
    """Good and bad requests at once each get their own reply, the good ones with their id."""
    good = PICTURES[0].read_bytes()

    def one(index: int) -> tuple[int, str]:
        picture = good if index % 2 else b"no picture"
        reply = httpx.post(server.url + INFER, json=infer_request(picture, id=f"id {index}"), timeout=60)
        return reply.status_code, reply.json().get("id", reply.json().get("error"))

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(one, range(16)))
    for index, (status, text) in enumerate(replies):
        assert (
            (status, text) == (200, f"id {index}")
            if index % 2
            else (status, text[:20]) == (400, "this is not a pictur")
        )


@pytest.mark.parametrize("path", [INFER, "/caption"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_answered_not_cut_off(server: Server, path: str, chunked: bool) -> None:
    """A client that sends a whole too large body before it reads gets its 413."""
    body = b" " * 13_000_000
    data = (body[start : start + 100_000] for start in range(0, len(body), 100_000)) if chunked else body
    reply = requests.post(server.url + path, data=data, timeout=PATIENCE_S)
    assert reply.status_code == 413
    assert "larger than the 12000000 bytes allowed" in reply.json()["error"]


def test_a_connection_stays_open_after_errors(server: Server) -> None:
    """A connection stays open after an error."""
    with requests.Session() as session:
        for body, status in (
            (b"{", 400),
            (json.dumps(infer_request(PICTURES[0].read_bytes())), 200),
            (b"", 400),
        ):
            reply = session.post(server.url + INFER, data=body, timeout=60)
            assert reply.status_code == status
            assert reply.headers.get("connection") != "close"


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json", "/"]
)
def test_bentomls_own_routes_answer(server: Server, path: str) -> None:
    """Probes, metrics, documents and the root page keep BentoML's paths."""
    reply = httpx.get(server.url + path, headers={"accept": "text/html,*/*;q=0.8"}, timeout=60)
    assert reply.status_code == 200
    assert reply.content


def test_metrics_count_the_requests(server: Server) -> None:
    """BentoML's request counter has the service's paths."""
    httpx.get(server.url + "/v2/health/live", timeout=60)
    assert (
        'bentoml_service_request_total{endpoint="/v2/health/live"'
        in httpx.get(server.url + "/metrics", timeout=60).text
    )


def test_metrics_say_what_the_engine_did(server: Server) -> None:
    """The metrics count batches, queue, tokens, encodes and steps; a repeated picture comes from memory."""
    picture = PICTURES[0].read_bytes()
    asks = json.dumps([{"task": "caption"}, {"task": "object_detection"}, {"task": "ocr"}])
    before = metrics(server)
    for _ in range(2):
        reply = httpx.post(
            server.url + "/analyze", files={"image": picture}, data={"tasks": asks}, timeout=60
        )
        assert len(reply.json()["answers"]) == 3

    def rests() -> bool:
        states = ("reading", "queue", "encoding", "decoding")
        now = metrics(server)
        return not any(now[f"florence_{state}_requests"] for state in states)

    wait_until(rests)
    after = metrics(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    steps, encodes = grown("florence_step_seconds_count"), grown("florence_encode_seconds_count")
    batch = {
        name: value
        for name, value in after.items()
        if name.startswith("bentoml_service_adaptive_batch_size_count") and 'runner_name="florence2"' in name
    }
    assert len(batch) == 2  # encode and decode
    assert grown('florence_requests_total{outcome="stop"}') == 6
    assert grown("florence_queue_seconds_count") == 6
    assert grown('florence_pictures_total{source="tower"}') <= 1
    assert grown('florence_pictures_total{source="memory"}') >= 5
    assert steps > 3
    assert encodes >= 2
    assert grown("florence_tokens_total") > 12


def metrics(server: Server) -> dict[str, float]:
    """The value of each sample of /metrics, by its name with labels."""
    lines = httpx.get(server.url + "/metrics", timeout=60).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.mark.parametrize("path", ["/nope", "/v2/nope", "/v2/models/florence%32"])
def test_unknown_paths_are_json(server: Server, path: str) -> None:
    """An unknown path is a 404 in JSON, also outside /v2; `%32` is not read as 2."""
    reply = httpx.get(httpx.URL(server.url, raw_path=path.encode()), timeout=60)
    assert reply.status_code == 404
    assert list(reply.json()) == ["error"]
