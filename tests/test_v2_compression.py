"""Compressed bodies: both encodings in both directions, limits, and broken input."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator

import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from v2 import INFER, request, send
from waiting import PATIENCE_S

from florence.errors import FlorenceError, ProtocolError, UnknownEncoding
from florence.server.http.bodies import plain_body
from florence.server.v2.compression import PIECE, choose_encoding, compress, decompressed
from florence.server.v2.http_app import V2App
from florence.server.v2.inference import Inference, ModelRepository

MAX_BYTES = 100_000
ENCODINGS = st.sampled_from(["gzip", "deflate"])
BODY = json.dumps(request()).encode()


@pytest.fixture
def app() -> Iterator[Starlette]:
    """The v2 routes with a fake model."""
    inference, model = Inference(PATIENCE_S), FakeModel()
    inference.model = model
    yield V2App(ModelRepository([inference]), MAX_BYTES)
    model.close()


@given(st.binary(max_size=3000), ENCODINGS)
def test_what_is_compressed_comes_back(body: bytes, encoding: str) -> None:
    """Any bytes survive compression and decompression in both encodings."""
    assert b"".join(decompressed(compress(body, encoding), encoding)) == body


@pytest.mark.parametrize(
    ("encoding", "packed"), [("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))]
)
def test_what_others_compress_is_read(encoding: str, packed: bytes) -> None:
    """gzip's container, and zlib's for deflate, are read."""
    assert b"".join(decompressed(packed, encoding)) == BODY


@given(st.binary(max_size=200), ENCODINGS, st.data())
def test_a_compressed_body_cut_or_prolonged_is_refused(
    body: bytes, encoding: str, data: st.DataObject
) -> None:
    """A compressed body that is cut or has bytes after its end is refused."""
    packed = compress(body, encoding)
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    for broken in (cut, packed + b"x"):
        with pytest.raises(ProtocolError, match=f"the body is not valid {encoding}"):
            list(decompressed(broken, encoding))


@given(st.binary(max_size=300), ENCODINGS | st.text(max_size=8))
def test_any_bytes_are_a_body_or_an_error_of_ours(body: bytes, encoding: str) -> None:
    """Any bytes and encoding give a body or a FlorenceError."""
    try:
        assert max(map(len, decompressed(body, encoding)), default=0) <= PIECE
    except FlorenceError as error:
        assert error.status in (400, 501)  # noqa: PT017  (either outcome is right)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("br, gzip ; q=1.0", "gzip"),
        ("gzip;q=0", None),
        ("*", None),
        ("br", None),
        ("identity", None),
        ("GZIP", None),
        ("gzip;q=x", None),
        ("gzip;q=.", None),
    ],
)
def test_the_client_chooses_the_answers_encoding(accepted: str, encoding: str | None) -> None:
    """The encoding with the highest weight is used, the first of equals; an unknown one gives a plain
    answer."""
    assert choose_encoding(accepted) == encoding


@given(st.text(st.sampled_from("gzipdeflat,;q=.01e- "), max_size=40))
def test_any_wish_has_an_answer(accepted: str) -> None:
    """Any Accept-Encoding header gives a known encoding or none."""
    assert choose_encoding(accepted) in (None, "gzip", "deflate")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_both_ways_over_http(app: Starlette, encoding: str) -> None:
    """A compressed request gets the same answer as a plain one, compressed on request."""
    packed, headers = compress(BODY, encoding), {"content-encoding": encoding, "accept-encoding": encoding}
    reply = send(app, "POST", INFER, content=packed, headers=headers)
    assert (reply.status_code, reply.headers["content-encoding"]) == (200, encoding)
    assert reply.headers["content-type"] == "application/json"
    plain = send(app, "POST", INFER, content=BODY, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert reply.json() == plain.json()


def test_errors_are_never_compressed(app: Starlette) -> None:
    """Errors are not compressed, as in Triton."""
    reply = send(app, "POST", INFER, content=b"{", headers={"accept-encoding": "gzip"})
    assert reply.status_code == 400
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("encoding", ["br", "GZIP", "zstd", "gzip, gzip"])
def test_an_unknown_encoding_is_a_501_that_names_the_known(app: Starlette, encoding: str) -> None:
    """An unknown encoding is a 501 in Triton's words, with the known ones."""
    reply = send(app, "POST", INFER, content=BODY, headers={"content-encoding": encoding})
    assert (reply.status_code, reply.json()) == (501, {"error": "Unsupported compression type"})
    assert reply.headers["accept-encoding"] == "gzip, deflate"


def test_a_bomb_is_a_413(app: Starlette) -> None:
    """A body that unpacks over the limit is a 413."""
    bomb = compress(bytes(MAX_BYTES + 1), "gzip")
    assert send(app, "POST", INFER, content=bomb, headers={"content-encoding": "gzip"}).status_code == 413


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_no_encoding_is_nothing_to_undo(encoding: str) -> None:
    """A body without an encoding, or with identity, is used as it is; unknown ones are refused."""
    assert asyncio.run(plain_body({}, BODY, encoding, 1)) is BODY
    with pytest.raises(UnknownEncoding):
        asyncio.run(plain_body({}, BODY, f"{encoding}x-gzip", 1))
