"""One task on many pictures: answers as they come, failures kept, a progress bar.

Knows nothing about HTTP: it is given a function that asks about one picture.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

from PIL import Image

from florence.client.pictures import Picture, picture_name
from florence.errors import FlorenceError, NotFound, RequestError, SettingsError, TaskError

logger = logging.getLogger("florence.client")

AnswerT = TypeVar("AnswerT")
AskedT = TypeVar("AskedT")  # AnswerT, or an awaitable of it
FutureT = TypeVar("FutureT")


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that got no answer, and why."""

    picture: Picture
    error: FlorenceError


class _PictureTally(Generic[AskedT, AnswerT]):
    """Counts answers and failures, shows them in a progress bar if wanted, and sums up at the end."""

    def __init__(
        self,
        ask: Callable[[Picture], AskedT],
        pictures: Iterable[Picture],
        *,
        concurrency: int,
        ordered: bool = False,
        progress: bool | None = None,
    ) -> None:
        if concurrency < 1:
            raise SettingsError(f"concurrency must be 1 or more, got {concurrency}")
        if isinstance(pictures, str | bytes | os.PathLike | Image.Image):  # some can be iterated over
            raise RequestError(f"pictures must be a list of pictures, got one: {picture_name(pictures)}")
        self.failures: list[Failure] = []
        self._ask = ask
        self._pictures = pictures
        self._concurrency = concurrency
        self._ordered = ordered
        self._progress = progress
        self._under_way: dict[Any, Picture] = {}  # future -> picture
        self._done = 0

    def _open_bar(self) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        total = len(self._pictures) if isinstance(self._pictures, Sized) else None
        silent = None if self._progress is None else not self._progress  # None: only on a terminal
        self._bar: Any = tqdm(total=total, unit="picture", disable=silent)

    def _close(self) -> None:
        self._bar.close()
        if self.failures:
            first = self.failures[0]
            logger.warning(
                "%d of %d pictures failed; the first, %s: %s",
                len(self.failures), self._done, picture_name(first.picture), first.error,
            )  # fmt: skip

    def _rounds(self, start: Callable[[Picture], FutureT]) -> Iterator[list[FutureT]]:
        """Start the requests; yields futures of which at least one must complete and go through `_note`
        before the next request is started."""
        for picture in self._pictures:
            self._under_way[start(picture)] = picture
            if len(self._under_way) >= self._concurrency:
                yield self._awaited()
        while self._under_way:
            yield self._awaited()

    def _awaited(self) -> list[Any]:
        return list(itertools.islice(self._under_way, 1 if self._ordered else None))

    def _note(
        self, done: Iterable[Future[AnswerT] | asyncio.Future[AnswerT]]
    ) -> Iterator[tuple[Picture, AnswerT]]:
        """The (picture, answer) pairs of completed requests; failed ones are added to `failures`."""
        for future in done:
            picture = self._under_way.pop(future)
            self._done += 1
            self._bar.update()
            try:
                answer = future.result()
            except (NotFound, TaskError):  # about the task, which all pictures share
                raise
            except FlorenceError as error:
                self.failures.append(Failure(picture, error))
                self._bar.set_postfix(failed=len(self.failures))
            else:
                yield picture, answer


class PictureMap(_PictureTally[AnswerT, AnswerT]):
    """Iterator of (picture, answer) in the order in which answers come; `failures` holds the others.

    `ordered`: in the order of the pictures instead. `progress`: whether a bar is shown on stderr; None: only
    if that is a terminal. Pictures are taken from the iterable as requests complete. Leaving the loop early
    waits for the requests in flight: call `close`, or use a `with` block, to choose where.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Picture, AnswerT]:
        return next(self._pairs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Start no more requests, and wait for those in flight."""
        self._pairs.close()

    @cached_property
    def _pairs(self) -> Generator[tuple[Picture, AnswerT], None, None]:
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="florence-map")
        self._open_bar()
        try:
            for awaited in self._rounds(lambda picture: pool.submit(self._ask, picture)):
                yield from self._note(wait(awaited, return_when=FIRST_COMPLETED).done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._close()


class AsyncPictureMap(_PictureTally[Awaitable[AnswerT], AnswerT]):
    """`PictureMap` for `async for`. Leaving the loop early cancels the requests in flight: call `aclose`, or
    use `async with`, to choose where."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Picture, AnswerT]:
        return await anext(self._pairs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Start no more requests, and cancel those in flight."""
        await self._pairs.aclose()

    @cached_property
    async def _pairs(self) -> AsyncGenerator[tuple[Picture, AnswerT], None]:
        self._open_bar()
        try:
            for awaited in self._rounds(lambda picture: asyncio.ensure_future(self._ask(picture))):
                done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                for pair in self._note(done):
                    yield pair
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._close()
