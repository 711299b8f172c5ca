"""The chat routes behind the service's middleware, and an `openai` client for them."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest
from fake_model import FakeModel
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from v2 import picture, roomy
from waiting import PATIENCE_S

from florence.server.fetching.fetcher import PictureFetcher, fetcher_of
from florence.server.http.paths import OPEN_PATHS
from florence.server.http.routing import middleware_of
from florence.server.keys import keys_of
from florence.server.openai.app import create_chat_app
from florence.server.v2.inference import Inference, ModelRepository
from florence.settings import Settings

KEY = "a1" * 16
DATA_URI = "data:image/png;base64," + base64.b64encode(picture()).decode()
MAX_BYTES = 200_000


def chat_client(
    model: FakeModel, *, any_prompt: bool = False, loaded: bool = True, fetcher: PictureFetcher | None = None
) -> TestClient:
    """A client for the chat routes behind the service's middleware; requests need the key."""
    inference = Inference(PATIENCE_S, any_prompt=any_prompt)
    inference.model = model if loaded else None
    repository, keys = ModelRepository([inference]), keys_of(f"alice:{KEY}", None)
    chat = create_chat_app(inference, fetcher or fetcher_of(Settings()))
    middleware = middleware_of(repository, MAX_BYTES, keys, OPEN_PATHS, chat=chat, budget=roomy())
    other = Route("/{path:path}", _fails, methods=["POST"])
    return TestClient(Starlette(routes=[other], middleware=middleware), raise_server_exceptions=False)


async def _fails(_request: Any) -> Response:
    """Answer every other path with a 400."""
    return JSONResponse({"error": "not of this API"}, 400)


def client_of(http: TestClient, key: str = KEY) -> openai.OpenAI:
    """An `openai` client that sends its requests to this test client."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0)


def messages(text: str, url: str = DATA_URI) -> list[Any]:
    """A chat with one text and one picture."""
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    """Send a chat with this text and a picture."""
    return client.chat.completions.create(model="florence2", messages=messages(text), **options)


def refusal(client: openai.OpenAI, text: str = "<CAPTION>", **options: Any) -> openai.APIStatusError:
    """The error that a chat with this text gets."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, text, **options)
    return caught.value
