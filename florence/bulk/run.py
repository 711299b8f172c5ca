"""A run: the questions about many pictures that are not answered yet, asked so many at a time.

Pictures are taken from their sources as requests end, so memory does not grow with their number, nor with
the size of those that an archive gives. Knows nothing about what answers: it is given a function that asks
about one picture.
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
"""Asks about one picture: an outcome for each question. In any thread; raises nothing of FlorenceError's."""
_AHEAD = 2
"""Pictures that are taken from the sources, by those that are asked about at a time."""
HELD_BYTES: Final = 256 * 2**20
"""Of pictures that are taken, and hold their bytes: no more is taken beyond that."""


@dataclass(frozen=True, slots=True)
class Job:
    """A picture with the questions that are open."""

    item: PictureItem
    questions: tuple[PictureQuestion, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of all pictures, `number` from 1. Which part a picture belongs to is decided by
    its id or name alone, so that machines agree on it whatever each of them lists."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of `3/8`. Raises RequestError for another text."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
        if found and 1 <= int(found[1]) <= int(found[2]):
            return cls(int(found[1]), int(found[2]))
        raise RequestError(f"a shard is its number of how many, such as 3/8, got {quote(text)}")

    def has(self, name: str) -> bool:
        """Whether a picture of this id or name belongs to it."""
        digest = blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1


@dataclass
class RunTally:
    """What became of questions that were not asked. before: they were answered by an earlier run. again:
    pictures that came twice. elsewhere: pictures of other shards."""

    before: int = 0
    again: int = 0
    elsewhere: int = 0


def open_jobs(
    items: Iterable[PictureItem],
    questions: Sequence[PictureQuestion],
    answered: AnsweredTasks,
    shard: Shard,
    tally: RunTally,
) -> Iterator[Job]:
    """The jobs of these items: each question once a picture, and none that `answered` has; it grows.

    Raises RequestError for an item without a question.
    """
    mine = AnsweredTasks()
    for item in items:
        if not shard.has(item.key):
            tally.elsewhere += 1
            continue
        asked = item.questions or questions
        if not asked:
            raise RequestError("what is to be done? Name a --task, or give a --prompt, or --tasks")
        fresh = [each for each in asked if mine.claim(item.key, each.key)]
        tally.again += not fresh
        open_ones = tuple(each for each in fresh if item.key not in answered.get(each.key, ()))
        tally.before += len(fresh) - len(open_ones)
        if open_ones:
            yield Job(item, open_ones)


class Running:
    """Iterator of (job, outcomes) of the jobs, `concurrency` at a time, in a thread for each.

    ordered: in the order of the jobs, else as they come. stopped: is set when no more is asked, for an `ask`
    that waits. Leaving it early, as a context manager, waits for
    the requests under way; `drain` gives what they end with.
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
        self._done: SimpleQueue[tuple[int, Job, Sequence[QuestionOutcome] | BaseException]] = SimpleQueue()
        self._under_way = 0  # given to the threads, and not taken from them
        self._held = 0  # bytes of the jobs that are given, and not yielded
        self._early: dict[
            int, tuple[Job, Sequence[QuestionOutcome]]
        ] = {}  # answered before one that comes first
        self._stopped = stopped or threading.Event()
        self._concurrency = concurrency
        self._threads: list[threading.Thread] = []  # no more than there are jobs

    def __iter__(self) -> Iterator[tuple[Job, Sequence[QuestionOutcome]]]:
        following = 0
        for number, job, outcomes in self._as_they_come():
            self._early[number] = job, outcomes
            while (next_one := following if self._ordered else number) in self._early:
                job, outcomes = self._early.pop(next_one)
                self._held -= job.item.held
                following += 1
                yield job, outcomes

    def drain(self) -> Iterator[tuple[Job, Sequence[QuestionOutcome]]]:
        """Ask no more; what comes of the requests under way. Errors beside FlorenceError's are dropped."""
        self.stop()
        yield from self._early.values()
        while self._under_way:
            _, job, outcomes = self._take()
            if not isinstance(outcomes, BaseException) and outcomes:
                yield job, outcomes

    def stop(self) -> None:
        """Start no more requests."""
        self._stopped.set()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _as_they_come(self) -> Iterator[tuple[int, Job, Sequence[QuestionOutcome]]]:
        more = True
        while more or self._under_way:
            while more and self._has_room() and not self._stopped.is_set():
                job = next(self._jobs, None)
                more = job is not None
                if job is not None:
                    self._give(job)
                with suppress(Empty):  # what has ended meanwhile is not kept waiting for the sources
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

    def _checked(
        self, done: tuple[int, Job, Sequence[QuestionOutcome] | BaseException]
    ) -> tuple[int, Job, Sequence[QuestionOutcome]]:
        self._under_way -= 1
        number, job, outcomes = done
        if isinstance(outcomes, BaseException):
            raise outcomes
        return number, job, outcomes

    def _take(self) -> tuple[int, Job, Sequence[QuestionOutcome] | BaseException]:
        taken = self._done.get()
        self._under_way -= 1
        return taken

    def _serve(self) -> None:
        while (given := self._work.get()) is not None:
            self._done.put((*given, self._answered(given[1])))
            del given  # its bytes, while this thread waits

    def _answered(self, job: Job) -> Sequence[QuestionOutcome] | BaseException:
        try:
            return () if self._stopped.is_set() else self._ask(job.item, job.questions)
        except BaseException as error:  # noqa: BLE001  (it is raised where the run is)
            self._stopped.set()
            return error
