"""The client's API key: sent from the argument or the environment; a refusal is raised at once."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from florence.client import AsyncClient, Client
from florence.errors import Unauthorized

URL = "http://florence.test"


@pytest.mark.parametrize(
    ("argument", "variable", "sent"),
    [
        (None, None, None),
        ("argument", None, "Bearer argument"),
        (None, "variable", "Bearer variable"),
        ("argument", "variable", "Bearer argument"),
    ],
)
def test_the_key_goes_with_every_request(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, variable: str | None, sent: str | None
) -> None:
    """Both clients send the key of the argument, else that of FLORENCE_API_KEY; a given Authorization header
    replaces both."""
    monkeypatch.delenv("FLORENCE_API_KEY", raising=False)
    if variable:
        monkeypatch.setenv("FLORENCE_API_KEY", variable)
    seen: list[str | None] = []

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200)

    async def ask() -> None:
        async with AsyncClient(URL, api_key=argument, transport=httpx.MockTransport(note)) as client:
            await client.ready()

    with Client(URL, api_key=argument, transport=httpx.MockTransport(note)) as client:
        client.ready()
    asyncio.run(ask())
    with Client(
        URL, api_key=argument, headers={"Authorization": "own"}, transport=httpx.MockTransport(note)
    ) as client:
        client.ready()
    assert seen == [sent, sent, "own"]


def test_a_refusal_is_told_at_once_in_the_services_words() -> None:
    """A refused key raises Unauthorized with the service's message, without a retry."""
    tries = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        return httpx.Response(401, json={"error": "the API key is not known: send ..."})

    client = Client(URL, transport=httpx.MockTransport(refuse))
    with client, pytest.raises(Unauthorized, match="the API key is not known"):
        client.caption(b"picture")
    assert len(tries) == 1
