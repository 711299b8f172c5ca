"""The typed client of a florence service, wherever it runs: `Client`, and `AsyncClient` for asyncio.

from florence.client import Client
with Client("http://localhost:8000") as client:
    answer = client.object_detection("street.jpg")
    answer.detections[0].box

Answers are the service's own types; `errors` lists what calls raise. Knows HTTP and encoded pictures; needs
no torch.
"""

from __future__ import annotations

from florence.client.clients import AsyncClient, Client
from florence.client.errors import ConnectionLost, UnexpectedReply, Unreachable
from florence.client.many import AsyncPictureMap, Failure, PictureMap
from florence.client.pictures import ImageUrl, Picture
from florence.errors import (
    DeadlineExceeded,
    EngineError,
    FetchFailed,
    FlorenceError,
    ImageError,
    ImageTooLarge,
    NoPicture,
    NotFound,
    RequestError,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "AsyncPictureMap",
    "Client",
    "ConnectionLost",
    "DeadlineExceeded",
    "EngineError",
    "Failure",
    "FetchFailed",
    "FlorenceError",
    "ImageError",
    "ImageTooLarge",
    "ImageUrl",
    "NoPicture",
    "NotFound",
    "Picture",
    "PictureMap",
    "RequestError",
    "Unavailable",
    "UnexpectedReply",
    "Unreachable",
]
