"""Measure how long v2 requests take, alone and during playground use, for `under_load.py --playground`.

A simulated user opens the page with all its files, then sends a task, reads the answer, and sends the next
one, as the page does: by form, as a stream, several tasks in one call. v2 requests come at a steady rate,
whether earlier ones are answered or not; a request's time counts from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles

import httpx
from bodies import INFER, as_text, v2_request
from serving import ROOT, Server

PATIENCE_S = 120.0
PICTURES = sorted((ROOT / "data").glob("scene_*.*g"))
PEOPLE = 10


def measure(
    server: Server, seconds: float, turns: int, rate: float, pause_s: float
) -> tuple[list[float], list[float]]:
    """The seconds of all v2 requests: alone, and during use by ten people. Both take turns, so that both meet
    the same load.

    seconds: of a turn; rate: v2 requests per second; pause_s: a user's time for reading an answer.
    """
    asyncio.run(_ask(server, rate, min(2.0, seconds)))  # a first round to warm up
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(turns):
        alone += asyncio.run(_ask(server, rate, seconds))
        beside += asyncio.run(_beside(server, rate, seconds, pause_s))
    return alone, beside


def summary(alone: list[float], beside: list[float]) -> str:
    """One line with the 95th percentile of both, and their ratio."""
    one, other = (quantiles(times, n=20)[-1] for times in (alone, beside))
    told = f"alone {1000 * one:.0f} ms, beside the playground {1000 * other:.0f}"
    return f"p95 of v2 {told}: {other / one:.3f} of it"


async def _beside(server: Server, rate: float, seconds: float, pause_s: float) -> list[float]:
    """The seconds of v2 requests during use by ten people."""
    people = [asyncio.create_task(_person(server, number, pause_s)) for number in range(PEOPLE)]
    times = await _ask(server, rate, seconds)
    for person in people:
        if person.done():
            person.result()  # raise the user's error
        person.cancel()
    await asyncio.gather(*people, return_exceptions=True)
    return times


@asynccontextmanager
async def _client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        yield client


async def _ask(server: Server, rate: float, seconds: float) -> list[float]:
    """Send v2 requests at this rate; return the seconds of each."""
    bodies = [json.dumps(v2_request(as_text(picture.read_bytes()))).encode() for picture in PICTURES]
    start, count = time.perf_counter(), max(2, round(rate * seconds))
    async with _client(server) as client:

        async def one(number: int) -> float:
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            body = bodies[number % len(bodies)]
            (await client.post(INFER, content=body)).raise_for_status()
            return time.perf_counter() - due

        return await asyncio.gather(*(one(number) for number in range(count)))


async def _person(server: Server, number: int, pause_s: float) -> None:
    """Open the page and send requests until cancelled."""
    dice = random.Random(number)
    async with _client(server) as client:
        await asyncio.sleep(dice.random() * pause_s)
        await _open_page(client)
        while True:
            picture = dice.choice(PICTURES)
            await dice.choice((_form, _stream, _analyze))(client, picture.read_bytes())
            await asyncio.sleep(pause_s * (0.5 + dice.random()))


async def _open_page(client: httpx.AsyncClient) -> None:
    """Load the page, its styles and modules, and what it reads from the service."""
    page, seen = (await client.get("/ui")).raise_for_status().text, set()
    waiting = re.findall(r'"(pages/[^"]+)"', page)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            text = (await client.get(f"/{name}")).raise_for_status().text
            waiting += [f"pages/{each}" for each in re.findall(r'from "\./([^"]+)"', text)]
    for path in ("/info", "/docs.json", "/pages/scene_04.jpg"):
        (await client.get(path)).raise_for_status()


async def _form(client: httpx.AsyncClient, picture: bytes) -> None:
    """Send a form."""
    (await client.post("/object_detection", files={"image": picture})).raise_for_status()


async def _stream(client: httpx.AsyncClient, picture: bytes) -> None:
    """Send a request for a stream."""
    body = {"INPUT_IMAGE": as_text(picture), "TASK_PROMPT": "<CAPTION>", "num_beams": 1}
    (await client.post("/v2/models/florence2/generate_stream", json=body)).raise_for_status()


async def _analyze(client: httpx.AsyncClient, picture: bytes) -> None:
    """Send a request with several tasks."""
    tasks = json.dumps(["caption", "ocr_with_region"])
    (await client.post("/analyze", files={"image": picture}, data={"tasks": tasks})).raise_for_status()
