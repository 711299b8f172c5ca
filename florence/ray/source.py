"""A run's jobs as a Ray Data dataset: listed jobs, and those of archives.

Listed jobs are put into the object store directly, without read tasks. Pictures in files and at URLs are read
by the actor that asks about them; only their names go through Ray. Archives are read by read tasks, each one
from its beginning to its end, and their pictures go through Ray. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import ray
import ray.data
from ray.data import Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from florence.bulk.items import PictureItem, is_url
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Job, RunTally, Shard, open_jobs
from florence.bulk.sources import SkippedFiles, Sources
from florence.bulk.store import AnsweredTasks
from florence.errors import FlorenceError, ImageError
from florence.ray.pool import BLOCK_BYTES
from florence.ray.rows import job_block
from florence.types.tasks import TASKS


@dataclass(frozen=True)
class Archives:
    """Archives, with `questions` about their pictures except those in `answered`. `places`: each name's
    absolute path or URL. `sources`: the settings for reading: frames, pages."""

    places: Mapping[str, str]
    sources: Sources
    questions: tuple[PictureQuestion, ...]
    answered: AnsweredTasks
    shard: Shard

    def jobs(self, name: str) -> Iterator[Job]:
        """The jobs of one archive. A read error becomes one job, which fails with that error."""
        try:
            yield from open_jobs(self._items(name), self.questions, self.answered, self.shard, RunTally())
        except (FlorenceError, OSError) as error:
            yield Job(PictureItem(name, partial(_fail, str(error))), self.questions)

    def _items(self, name: str) -> Iterator[PictureItem]:
        """The archive's items, with the names that they have where the run was started."""
        place = self.places[name]
        for item in replace(self.sources, names=[place]).items():
            yield replace(item, picture=item.picture.replace(f"::{place}", f"::{name}", 1))


class JobSource:
    """Blocks of `batch` jobs in order; then those of the archives."""

    def __init__(self, jobs: Iterable[Job], batch: int, archives: Archives | None = None) -> None:
        self._jobs, self._batch = list(map(_placed, jobs)), batch
        self._archives = archives if archives and archives.places else None

    def __bool__(self) -> bool:
        """Whether there are any jobs or archives."""
        return bool(self._jobs or self._archives)

    def dataset(self, readers: int) -> Dataset:
        """The blocks as a dataset on the cluster of this process: listed jobs are put there, others come from
        `readers` read tasks at a time. There must be some."""
        starts = range(0, len(self._jobs), self._batch)
        listed = [job_block(self._jobs[start : start + self._batch]) for start in starts]
        parts: list[Dataset] = [ray.data.from_blocks(listed)] if listed else []
        if self._archives:
            tasks, count = ArchiveTasks(self._archives, self._batch), len(self._archives.places)
            at_once = min(readers, count)
            parts.append(
                ray.data.read_datasource(tasks, override_num_blocks=count, num_cpus=0, concurrency=at_once)
            )
        return parts[0].union(*parts[1:]) if parts[1:] else parts[0]


class ArchiveTasks(Datasource):
    """A read task for each archive, which has blocks of up to `batch` jobs."""

    def __init__(self, archives: Archives, batch: int) -> None:
        self._archives, self._batch = archives, batch

    def estimate_inmemory_data_size(self) -> int | None:
        """None: unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The read tasks, in the order of the archives."""
        shared = ray.put(self._archives)  # what is answered is sent once, not with each task
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [
            ReadTask(partial(_of_archive, shared, name, self._batch), unknown)
            for name in self._archives.places
        ]


def in_archives(sources: Sources) -> Sources:
    """The sources' settings for `Archives`, without objects that only exist in this process."""
    return Sources(
        (),
        pages=sources.pages,
        frame=sources.frame,
        find=TASKS.read,
        skipped=SkippedFiles(),
        max_bytes=sources.max_bytes,
    )


def absolute(name: str) -> str:
    """An absolute path, since workers run in another directory; a URL unchanged."""
    return name if is_url(name) else str(Path(name).absolute())


def _placed(job: Job) -> Job:
    source = job.item.source
    return replace(job, item=replace(job.item, source=absolute(source))) if isinstance(source, str) else job


def _of_archive(shared: Any, name: str, batch: int) -> Iterator[pandas.DataFrame]:
    archives: Archives = ray.get(shared)
    yield from map(job_block, chunks(archives.jobs(name), batch))


def chunks(jobs: Iterable[Job], max_jobs: int) -> Iterator[list[Job]]:
    """The jobs in lists of `max_jobs`; shorter ones where the pictures' bytes fill a block."""
    chunk: list[Job] = []
    for job in jobs:
        chunk.append(job)
        if len(chunk) == max_jobs or sum(each.item.held for each in chunk) >= BLOCK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _fail(message: str) -> bytes:
    raise ImageError(message)
