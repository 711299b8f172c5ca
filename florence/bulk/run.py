"""A run: asks the questions about many pictures that are not answered yet, a number of pictures at a time.

Pictures are taken from their sources as requests end, so memory does not grow with the number of pictures or
the size of archives. Knows nothing about models and services: it gets a function that asks about one picture.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from queue import Empty, SimpleQueue
from typing import Any, Final

from florence.bulk.items import PictureItem
from florence.bulk.question import PictureQuestion
from florence.bulk.store import AnsweredTasks
from florence.errors import FlorenceError, RequestError, SettingsError, quote
from florence.types.answer import TaskAnswer

QuestionOutcome = TaskAnswer[Any] | FlorenceError
Ask = Callable[[PictureItem, Sequence[PictureQuestion]], Sequence[QuestionOutcome]]
"""Asks about one picture, and returns an outcome for each question. Called in any thread; a `FlorenceError`
is returned, not raised."""
_AHEAD = 2
"""Pictures that may be taken from the sources, as a multiple of those that are asked about at a time."""
HELD_BYTES: Final = 256 * 2**20
"""Bytes in memory of pictures that were taken from archives: at this limit no more are taken."""


@dataclass(frozen=True, slots=True)
class Job:
    """A picture with its unanswered questions."""

    item: PictureItem
    questions: tuple[PictureQuestion, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of all pictures; `number` from 1. A picture's part depends on its id or name
    alone, so that machines agree on it whatever files each of them lists."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `3/8`. Raises `RequestError` for any other text."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
        if found and 1 <= int(found[1]) <= int(found[2]):
            return cls(int(found[1]), int(found[2]))
        raise RequestError(f"a shard is K/N, such as 3/8, got {quote(text)}")

    def has(self, name: str) -> bool:
        """Whether a picture with this id or name belongs to the part."""
        digest = blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1


_Done = tuple[int, Job, Sequence[QuestionOutcome] | BaseException]


@dataclass
class RunTally:
    """Counts of what was not asked. `answered`: questions answered by an earlier run. `duplicates`: duplicate
    pictures. `other_shards`: pictures of other shards."""

    answered: int = 0
    duplicates: int = 0
    other_shards: int = 0


def open_jobs(
    items: Iterable[PictureItem],
    questions: Sequence[PictureQuestion],
    answered: AnsweredTasks,
    shard: Shard,
    tally: RunTally,
) -> Iterator[Job]:
    """The jobs of these items: each question once for each picture, except those in `answered`, to which they
    are added.

    Raises `RequestError` for an item without a question.
    """
    mine = AnsweredTasks()
    for item in items:
        if not shard.has(item.key):
            tally.other_shards += 1
            continue
        asked = item.questions or questions
        if not asked:
            raise RequestError("no task given: use --task, --tasks or --prompt")
        fresh = [each for each in asked if mine.claim(item.key, each.key)]
        tally.duplicates += not fresh
        open_ones = tuple(each for each in fresh if item.key not in answered.get(each.key, ()))
        tally.answered += len(fresh) - len(open_ones)
        if open_ones:
            yield Job(item, open_ones)


class Running:
    """Iterates over (job, outcomes), running `concurrency` jobs at a time, each in a thread.

    `ordered`: yield in the order of the jobs, else as they finish. `stopped`: is set when nothing more is
    asked, so that an `ask` that waits can give up. Leaving the context early waits for the requests in
    flight; `drain` yields their outcomes.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        ask: Ask,
        *,
        concurrency: int,
        ordered: bool = False,
        stopped: threading.Event | None = None,
    ) -> None:
        if concurrency < 1:
            raise SettingsError(f"concurrency must be 1 or more, got {concurrency}")
        self._jobs = enumerate(jobs)
        self._ask, self._ordered = ask, ordered
        self._room = _AHEAD * concurrency
        self._work: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
        self._done: SimpleQueue[_Done | None] = SimpleQueue()  # None: an interrupt
        self._under_way = 0  # given to the threads, outcome not taken yet
        self._held = 0  # bytes of the jobs that are given and not yielded yet
        self._early: dict[int, tuple[Job, Sequence[QuestionOutcome]]] = {}  # finished before an earlier one
        self._stopped = stopped or threading.Event()
        self._concurrency = concurrency
        self._threads: list[threading.Thread] = []  # at most as many as jobs

    def __iter__(self) -> Iterator[tuple[Job, Sequence[QuestionOutcome]]]:
        following = 0
        for number, job, outcomes in self._as_they_come():
            self._early[number] = job, outcomes
            while (next_one := following if self._ordered else number) in self._early:
                job, outcomes = self._early.pop(next_one)
                self._held -= job.item.held
                following += 1
                yield job, outcomes

    def interrupt(self) -> None:
        """Make the iteration raise KeyboardInterrupt when it next waits for an outcome. For a signal handler:
        an exception at any other moment could lose the outcome that was just taken."""
        self._done.put(None)  # SimpleQueue's `put` is reentrant

    def drain(self) -> Iterator[tuple[Job, Sequence[QuestionOutcome]]]:
        """Start no more requests, wait for those in flight, and yield their outcomes. Errors other than
        `FlorenceError` are dropped."""
        self._end_threads()
        yield from self._early.values()
        while not self._done.empty():
            done = self._done.get()
            if done is not None and done[2] and not isinstance(done[2], BaseException):
                yield done[1], done[2]

    def stop(self) -> None:
        """Start no more requests."""
        self._stopped.set()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_threads()

    def _end_threads(self) -> None:
        self.stop()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # else an interrupt came before its start
                thread.join()

    def _as_they_come(self) -> Iterator[tuple[int, Job, Sequence[QuestionOutcome]]]:
        more = True
        while more or self._under_way:
            while more and self._has_room() and not self._stopped.is_set():
                job = next(self._jobs, None)
                more = job is not None
                if job is not None:
                    self._give(job)
                with suppress(Empty):  # yield finished jobs before waiting for the sources
                    yield self._checked(self._done.get_nowait())
            if self._under_way:
                yield self._checked(self._done.get())
            elif self._stopped.is_set():
                return

    def _has_room(self) -> bool:
        return self._under_way + len(self._early) < self._room and self._held < HELD_BYTES

    def _give(self, job: tuple[int, Job]) -> None:
        self._work.put(job)
        self._under_way += 1
        self._held += job[1].item.held
        if len(self._threads) < min(self._under_way, self._concurrency):
            name = f"florence-bulk-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()

    def _checked(self, done: _Done | None) -> tuple[int, Job, Sequence[QuestionOutcome]]:
        if done is None:
            raise KeyboardInterrupt
        self._under_way -= 1
        number, job, outcomes = done
        if isinstance(outcomes, BaseException):
            raise outcomes
        return number, job, outcomes

    def _serve(self) -> None:
        while (given := self._work.get()) is not None:
            self._done.put((*given, self._answered(given[1])))
            del given  # free its bytes while this thread waits

    def _answered(self, job: Job) -> Sequence[QuestionOutcome] | BaseException:
        try:
            return () if self._stopped.is_set() else self._ask(job.item, job.questions)
        except BaseException as error:  # noqa: BLE001  (it is raised where the run is)
            self._stopped.set()
            return error
