"""A run's jobs as a data source of Ray Data: those that are listed, and those of archives.

Pictures of files and URLs are read by the actor that asks about them; only their names go through Ray.
Archives are read by read tasks, each one from its beginning to its end, and their pictures go through Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from florence.bulk.items import PictureItem, is_url
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Job, RunTally, Shard, open_jobs
from florence.bulk.sources import PassedOver, Sources
from florence.bulk.store import AnsweredTasks
from florence.errors import FlorenceError, ImageError
from florence.ray.pool import BLOCK_BYTES
from florence.ray.rows import job_block
from florence.types.tasks import TASKS


@dataclass(frozen=True)
class Archives:
    """Archives whose pictures are asked `questions`, but for what `answered` has. places: where each name is
    found, from any directory. sources: says what of them is read: frames, pages."""

    places: Mapping[str, str]
    sources: Sources
    questions: tuple[PictureQuestion, ...]
    answered: AnsweredTasks
    shard: Shard

    def jobs(self, name: str) -> Iterator[Job]:
        """Of one of them. What can't be read of it is one job, which fails and says so."""
        try:
            yield from open_jobs(self._items(name), self.questions, self.answered, self.shard, RunTally())
        except (FlorenceError, OSError) as error:
            yield Job(PictureItem(name, partial(_fail, str(error))), self.questions)

    def _items(self, name: str) -> Iterator[PictureItem]:
        """Under the names that they have where the run was started."""
        place = self.places[name]
        for item in replace(self.sources, names=[place]).items():
            yield replace(item, picture=item.picture.replace(f"::{place}", f"::{name}", 1))


class JobSource(Datasource):
    """Blocks of `batch` jobs, in their order; then those of the archives."""

    def __init__(self, jobs: Iterable[Job], batch: int, archives: Archives | None = None) -> None:
        self._jobs, self._batch, self._archives = list(map(_placed, jobs)), batch, archives

    def __len__(self) -> int:
        """How many blocks there are, an archive's counted as one."""
        return -(-len(self._jobs) // self._batch) + len(self._archives.places if self._archives else ())

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One for each block, and one for each archive."""
        starts = range(0, len(self._jobs), self._batch)
        chunks = [self._jobs[start : start + self._batch] for start in starts]
        tasks = [ReadTask(partial(_listed, chunk), _metadata(len(chunk))) for chunk in chunks]
        if self._archives:
            shared = ray.put(self._archives)  # the answers are sent once, not with each task
            tasks += [
                ReadTask(partial(_of_archive, shared, name, self._batch), _metadata(None))
                for name in self._archives.places
            ]
        return tasks


def in_archives(sources: Sources) -> Sources:
    """What `Archives` reads them by: without what only this process has."""
    return Sources(
        (),
        pages=sources.pages,
        frame=sources.frame,
        find=TASKS.resolve,
        passed=PassedOver(),
        most_bytes=sources.most_bytes,
    )


def absolute(name: str) -> str:
    """A path of this machine as a worker, which runs in another directory, finds it; a URL as it is."""
    return name if is_url(name) else str(Path(name).absolute())


def _placed(job: Job) -> Job:
    source = job.item.source
    return replace(job, item=replace(job.item, source=absolute(source))) if isinstance(source, str) else job


def _listed(jobs: Sequence[Job]) -> list[pandas.DataFrame]:
    return [job_block(jobs)]


def _of_archive(shared: Any, name: str, batch: int) -> Iterator[pandas.DataFrame]:
    archives: Archives = ray.get(shared)
    yield from map(job_block, chunks(archives.jobs(name), batch))


def chunks(jobs: Iterable[Job], most: int) -> Iterator[list[Job]]:
    """So many jobs at a time; fewer where their pictures fill a block."""
    chunk: list[Job] = []
    for job in jobs:
        chunk.append(job)
        if len(chunk) == most or sum(each.item.held for each in chunk) >= BLOCK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _metadata(rows: int | None) -> BlockMetadata:
    return BlockMetadata(num_rows=rows, size_bytes=None, exec_stats=None, input_files=None)


def _fail(message: str) -> bytes:
    raise ImageError(message)
