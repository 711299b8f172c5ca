"""The option `pictures`: the same picture through every interface, as a viewer shows it or as the original
reads it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from serving import Server

from florence import Florence2
from florence.client import Client
from florence.errors import OptionError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def transparent() -> bytes:
    """A scene of data/ with alpha: its border, black below, is transparent."""
    picture = Image.open(ROOT / "data" / "scene_04.jpg").convert("RGB")
    pixels = np.asarray(picture).copy()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    for edge in (np.s_[:30], np.s_[-30:], np.s_[:, :30], np.s_[:, -30:]):
        alpha[edge], pixels[edge] = 0, 0
    file = io.BytesIO()
    Image.fromarray(np.dstack([pixels, alpha])).save(file, "PNG")
    return file.getvalue()


def flat(data: bytes, background: str) -> bytes:
    """The picture on a background; on black it equals the picture without alpha."""
    layered = Image.open(io.BytesIO(data))
    below = Image.new("RGBA", layered.size, background)
    file = io.BytesIO()
    Image.alpha_composite(below, layered).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "background"),
    [
        ({}, "#ffffff"),
        ({"pictures": "seen"}, "#ffffff"),
        ({"background": "#204060"}, "#204060"),
        ({"pictures": "original"}, "#000000"),
    ],
)
def test_the_library_sees_what_the_option_says(
    library: Florence2, transparent: bytes, options: Any, background: str
) -> None:
    """The tokens and probabilities are those of the flattened picture, from bytes and from PIL pictures."""
    wanted = library.run(flat(transparent, background), "caption")
    for picture in (transparent, Image.open(io.BytesIO(transparent))):
        answer = library.run(picture, "caption", **options)
        assert answer.token_ids == wanted.token_ids
        assert answer.token_logprobs == pytest.approx(wanted.token_logprobs, abs=1e-5)


@pytest.mark.parametrize("background", ["white", "#fff", "#12345g", "", 7])
def test_a_background_is_a_colour_in_hexadecimal(library: Florence2, background: Any) -> None:
    """Any other background is an OptionError with an example."""
    with pytest.raises(OptionError, match="a colour such as #ffffff"):
        library.run(b"", "caption", background=background)


@pytest.mark.slow
def test_the_service_sees_by_default_and_v2_reads_as_the_original(
    demo_server: Server, transparent: bytes
) -> None:
    """Typed endpoints default to the viewer's picture, v2 to the original's; each gives the other on
    request."""

    def typed(**options: Any) -> Any:
        with Client(demo_server.url) as client:
            return client.object_detection(transparent, **options).result

    def v2(**parameters: Any) -> Any:
        values = {"INPUT_IMAGE": base64.b64encode(transparent).decode(), "TASK_PROMPT": "<OD>"}
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
            for name, value in values.items()
        ]
        body = {"inputs": inputs, "parameters": parameters}
        reply = requests.post(demo_server.url + "/v2/models/florence2/infer", json=body, timeout=60)
        return json.loads(reply.json()["outputs"][0]["data"][0])

    def boxes(result: Any) -> Any:
        return [[round(side, 2) for side in found.box] for found in result.detections]

    seen, original = typed(), typed(pictures="original")
    assert boxes(typed(pictures="seen")) == boxes(seen)
    assert boxes(seen) != boxes(original)
    assert v2() == v2(pictures="original") != v2(pictures="seen")
