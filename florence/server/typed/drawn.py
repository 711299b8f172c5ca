"""An answer as a picture: drawn on the one that was sent, in a process of its own, as a PNG.

Knows the Accept header and that process; `export` draws.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from typing import Final

import anyio
from anyio.lowlevel import RunVar
from starlette.responses import Response

from florence.answers.answer import Answer
from florence.errors import DeadlineExceeded, EngineError, ImageError, quote
from florence.export.process import REFUSED, DrawJob
from florence.images.isolated import command
from florence.images.limits import ImageLimits
from florence.server.log import logger
from florence.server.replies import JSON, limiter_in
from florence.types.pictures import PictureOptions

PNG: Final = "image/png"
_MAX_PROCESSES: Final = 1  # processes at a time: each takes a core and the memory of a picture
_TURN: Final = RunVar[anyio.CapacityLimiter]("florence_drawers")


def wants_picture(accept: str) -> bool:
    """Whether an Accept header names image/png, and not application/json too."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return PNG in kinds and JSON not in kinds


async def draw_answer(
    answer: Answer, picture: bytes, options: PictureOptions, limits: ImageLimits, timeout_s: float
) -> Response:
    """The reply with the drawn answer. `options`: the request's. `limits`: on the picture.

    Raises ImageError for a picture that can't be drawn on, DeadlineExceeded, and EngineError for a process
    that ended.
    """
    view = options.model_dump(include={"background", "frame", "page"})
    job = DrawJob(answer.annotations(), answer.caption(), limits, **view).pack(bytes(picture))
    try:
        async with asyncio.timeout(timeout_s), limiter_in(_TURN, _MAX_PROCESSES):
            return Response(await _run(job), media_type=PNG)
    except TimeoutError:
        raise DeadlineExceeded(f"the answer was not drawn within {timeout_s:g} s") from None


async def _run(job: bytes) -> bytes:
    """The PNG that the process writes; the process is killed where this is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command("florence.export.process"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={},
        start_new_session=True,
    )
    try:
        drawn, noise = await process.communicate(job)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == REFUSED:
        raise ImageError(noise.decode(errors="replace"))
    if process.returncode != 0:
        logger.warning("drawing an answer ended with status %d: %s", process.returncode, quote(noise, 500))
        raise EngineError("the answer was not drawn: the process for it ended")
    return drawn
