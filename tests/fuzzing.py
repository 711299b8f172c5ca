"""Damaged inputs made from real ones and a seed: pictures of every supported format, bodies and messages.

An input is determined by its kind, seed and number alone, so any can be made again.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from grpc_calls import message
from pdfs import pdf
from pictures import drawn, saved
from pydantic import ValidationError
from tritonclient.grpc import service_pb2
from v2 import SERVED, parse_infer_request

from florence.errors import FlorenceError
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.pdf import render_page
from florence.images.preprocess import InputSize
from florence.images.seen import View
from florence.readers.picture import LocalReader
from florence.server.typed.inputs import PlainInput
from florence.server.v2.grpc_server import read_infer_request
from florence.server.v2.infer_body import parse_generate_request
from florence.server.v2.messages import parse_message
from florence.server.v2.tensors import read_rows

LARGE: Final = 4200, 3150  # pixels: a decoder needs just under the 64 MiB that a reader keeps
SMALL: Final = ImageLimits(max_pixels=1_000_000, pdf_dpi=36)
EXTREMES: Final = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 4,
    b"\x00" * 4,
    b"\x80\x00\x00\x00",
    b"\xff" * 8,
)
WORDS: Final = (
    b"{",
    b"[",
    b'"',
    b"\\",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"NaN",
)


ODD: Final = (
    None, True, 0, -1, 2**31, 2**63, 2**64, 1e300, 0.5, "", "x", "\ud800", "<OD>", "7" * 100, [], {}, [[]],
    [None], {"a": {}}, [1, 1], [36, 1], [-1, 1], "BYTES", "FP32", "TEXT_PROMPT", "never",
)  # fmt: skip


def mutate(source: random.Random, data: bytes) -> bytes:
    """The data with one to eight changes: bytes set, bits flipped, parts removed, repeated, moved or
    inserted."""
    made = bytearray(data)
    for _ in range(source.randint(1, 8)):
        if not made:
            made += source.randbytes(8)
        at = source.randrange(len(made))
        size = min(len(made) - at, source.choice((1, 2, 4, 8, 64, 1024)))
        match source.randrange(7):
            case 0:
                made[at] ^= 1 << source.randrange(8)
            case 1:
                made[at : at + size] = source.randbytes(size)
            case 2:
                del made[at : at + size]
            case 3:
                made[at:at] = made[at : at + size] * source.randint(1, 3)
            case 4:
                extreme = source.choice(EXTREMES)
                made[at : at + len(extreme)] = extreme
            case 5:
                made[at:at] = source.choice(WORDS)
            case 6:
                del made[at:]
    return bytes(made)


def mutate_json(source: random.Random, data: bytes) -> bytes:
    """The JSON with one to three values replaced, removed or added; the result is valid JSON."""
    content = json.loads(data)
    for _ in range(source.randint(1, 3)):
        places = list(_places(content))
        if not places:
            break
        holder, key = source.choice(places)
        odd = copy.deepcopy(source.choice((*ODD, holder[key], [holder[key]] * source.randint(0, 3))))
        match source.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[source.choice(("", "x", "parameters", "binary_data_size", "num_beams"))] = odd
            case _:
                holder[key] = odd
    return json.dumps(content).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each member and element, as its holder and its key."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield value, key
        yield from _places(each)


@cache
def pictures() -> Mapping[str, bytes]:
    """A small file of each format, in several encodings."""
    picture, frames = drawn(48, 32), [drawn(24, 16, frame=index) for index in range(3)]
    made = {
        f"PNG {mode}": saved(drawn(24, 16, mode), "PNG")
        for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")
        if mode != "I;16"
    }
    made |= {
        "JPEG": saved(picture, "JPEG"),
        "JPEG progressive": saved(picture, "JPEG", progressive=True),
        "JPEG CMYK": saved(picture.convert("CMYK"), "JPEG"),
        "WebP": saved(picture, "WEBP"),
        "WebP lossless": saved(picture, "WEBP", lossless=True),
        "GIF": saved(frames[0].convert("P"), "GIF", save_all=True, append_images=frames[1:]),
        "BMP": saved(picture, "BMP"),
        "AVIF": saved(picture, "AVIF"),
        "TIFF fax": saved(picture.convert("1"), "TIFF", compression="group4"),
        **{
            f"TIFF {kind}": saved(picture, "TIFF", compression=kind)
            for kind in ("raw", "tiff_lzw", "tiff_deflate")
        },
    }
    try:
        import pillow_heif
    except ImportError:
        return made
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file)
    return {**made, "HEIC": file.getvalue()}


@cache
def many() -> Mapping[str, bytes]:
    """Files of three frames or pages. The time of creation, which an AVIF holds, is set to zero."""
    first, *others = [drawn(24, 16, frame=index) for index in range(3)]
    frames = {"save_all": True, "append_images": others}
    made = {kind: saved(first, kind, **frames) for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF")}
    timed = rb"((?:mvhd|tkhd|mdhd)\x01...).{16}"
    return made | {"AVIF": re.sub(timed, rb"\1" + bytes(16), made["AVIF"], flags=re.DOTALL)}


@cache
def large_picture() -> bytes:
    """A JPEG whose decoder needs nearly all the memory that a reader keeps for later pictures."""
    return saved(drawn(*LARGE), "JPEG")


def _read_third(data: bytes) -> None:
    """Read the third frame and the third page."""
    for view in (View(frame=3), View(page=3)):
        with contextlib.suppress(FlorenceError):
            _reader().read(data, view)


def infer_body() -> bytes:
    """A v2 request in JSON."""
    columns = {"INPUT_IMAGE": base64.b64encode(pictures()["PNG RGB"]).decode(), "TASK_PROMPT": "<CAPTION>"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in columns.items()
    ]
    return json.dumps(
        {"id": "7", "inputs": inputs, "parameters": {"num_beams": 1, "max_new_tokens": 2}}
    ).encode()


def typed_body() -> bytes:
    """A request of a typed endpoint in JSON."""
    image = base64.b64encode(pictures()["PNG RGB"]).decode()
    return json.dumps({"image": image, "num_beams": 1, "max_new_tokens": 2}).encode()


def generate_body() -> bytes:
    """A request of the generate extension."""
    return typed_body().replace(b'{"image"', b'{"TASK_PROMPT": "<CAPTION>", "INPUT_IMAGE"')


def form_body() -> bytes:
    """The request of a typed endpoint as a form whose boundary is `edge`."""
    head = b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    parts = ((b"image", b'; filename="a"', pictures()["PNG RGB"]), (b"num_beams", b"", b"1"))
    return b"".join(head % part for part in parts) + b"--edge--\r\n"


def grpc_message() -> bytes:
    """A ModelInferRequest, serialized."""
    sent = message({"INPUT_IMAGE": [pictures()["PNG RGB"]], "TASK_PROMPT": [b"<CAPTION>"]}, id="7")
    sent.parameters["num_beams"].int64_param = 1
    sent.parameters["max_new_tokens"].int64_param = 2
    return bytes(sent.SerializeToString(deterministic=True))


def _read_rows(columns: Any) -> None:
    """Read the picture of each row."""
    for row in read_rows(columns):
        row.image()


def _read_grpc(data: bytes) -> None:
    """Read a ModelInferRequest."""
    parsed = parse_message(service_pb2.ModelInferRequest, data)
    _read_rows(read_infer_request(SERVED, parsed).columns)


@dataclass(frozen=True)
class Target:
    """A function under test for one kind of inputs. seeds: the real inputs; take: reads one, and may raise
    `allowed`."""

    seeds: Callable[[], Mapping[str, bytes]]
    take: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = (FlorenceError,)

    def input(self, kind: str, seed: int, number: int) -> bytes:
        """The input of this number. JSON is damaged as bytes, or as values."""
        source = random.Random(f"{kind} {seed} {number}")
        real = self.seeds()[source.choice(sorted(self.seeds()))]
        return (mutate_json if real.startswith(b"{") and source.randrange(2) else mutate)(source, real)

    def feed(self, data: bytes) -> None:
        """Read the data; an exception that is not allowed is raised."""
        try:
            self.take(data)
        except self.allowed:
            return


@cache
def _reader() -> LocalReader:
    """A reader for small pictures."""
    return LocalReader(InputSize(64, 64, 3), DEFAULT_LIMITS)


TARGETS: Final[Mapping[str, Target]] = {
    "picture": Target(pictures, lambda data: _reader().read(data)),
    "frame": Target(many, _read_third),
    "pdf": Target(lambda: {"": pdf(), "turned": pdf(rotate=90)}, lambda data: render_page(data, 2, SMALL)),
    "infer": Target(lambda: {"": infer_body()}, lambda data: _read_rows(parse_infer_request(data).columns)),
    "generate": Target(
        lambda: {"": generate_body()},
        lambda data: _read_rows(parse_generate_request(SERVED, data).columns),
    ),
    "typed": Target(lambda: {"": typed_body()}, PlainInput.from_json, (FlorenceError, ValidationError)),
    "grpc": Target(lambda: {"": grpc_message()}, _read_grpc),
}
"""Kind of inputs -> the function under test."""
