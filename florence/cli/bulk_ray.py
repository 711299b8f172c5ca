"""`florence bulk --ray`: the same questions, asked on a Ray cluster.

Open questions are listed on this machine, and answers come back to it, except parts of Parquet, which the
nodes write.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from florence.bulk.lines import FailureFile
from florence.bulk.question import PictureQuestion
from florence.bulk.run import Job, Shard
from florence.bulk.sources import Sources
from florence.bulk.store import AnsweredTasks, Store
from florence.cli.asking import model_settings, urls_of
from florence.errors import MissingLibrary, RequestError


def check_ray(arguments: argparse.Namespace) -> None:
    """Raises RequestError for arguments that contradict --ray or need it, MissingLibrary where Ray is not
    installed."""
    if arguments.ray is None:
        if given := [
            f"--{name.replace('_', '-')}"
            for name in ("actors", "gpus_per_actor", "cpus_per_actor")
            if getattr(arguments, name) is not None
        ]:
            raise RequestError(f"{given[0]} is for a run on a Ray cluster; give --ray too, or leave it out")
        return
    if urls_of(arguments):
        raise RequestError("--ray loads models in actors, and --url asks a service; leave one of them out")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingLibrary("a run on a cluster", "ray[data]", "ray") from error


def ask_on_ray(
    jobs: Iterable[Job],
    questions: tuple[PictureQuestion, ...],
    sources: Sources,
    answered: AnsweredTasks,
    store: Store,
    failures: FailureFile,
    arguments: argparse.Namespace,
) -> int:
    """Ask the questions of `jobs` on a cluster; returns the number of new answers. An interrupt raises
    KeyboardInterrupt with a message that says what was kept."""
    from florence.ray.pool import ActorPool, cluster
    from florence.ray.run import RayRun
    from florence.ray.source import Archives, JobSource, absolute, in_archives

    pool = ActorPool.parse(arguments.actors or "1", arguments.gpus_per_actor, arguments.cpus_per_actor)
    listed = list(_held(jobs, store, failures))
    archives = Archives(
        {name: absolute(name) for name in sources.archives or ()},
        in_archives(sources),
        questions,
        answered,
        Shard.parse(arguments.shard),
    )
    run = RayRun(pool, arguments.concurrency, arguments.ordered, actor_arguments(arguments))
    source = JobSource(listed, run.concurrency, archives)
    if not source:
        return 0
    with cluster(arguments.ray or None):
        try:
            if arguments.part_rows:
                made = run.write_parts(source, store.out, arguments.part_rows, bars=not arguments.no_progress)
                for line in made.failures:
                    failures.add_line(line)
                return made.answers
            total = None if archives.places else sum(len(job.questions) for job in listed)
            return _keep(run.lines(source), total, store, failures, arguments)
        except KeyboardInterrupt:
            kept = store.out if arguments.part_rows else store.lines
            raise KeyboardInterrupt(
                f"interrupted: what {kept} holds is kept; the same command asks for the rest"
            ) from None


def actor_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `FlorenceActor`: it loads the model of this process's settings, wherever it runs."""
    return {"settings": model_settings(arguments).without_secrets(), "pdf_dpi": arguments.dpi}


def _keep(
    rows: Iterator[dict[str, str | None]],
    total: int | None,
    store: Store,
    failures: FailureFile,
    arguments: argparse.Namespace,
) -> int:
    """Write answers and failures; returns the number of answers. A question that the cluster asked twice is
    written once."""
    kept: set[str | None] = set()
    made = 0
    with tqdm(total=total, unit="answer", disable=True if arguments.no_progress else None) as bar:
        for row in rows:
            if row["key"] in kept:
                continue
            kept.add(row["key"])
            if row["line"] is None:
                failures.add_line(row["failure"] or "")
                bar.set_postfix(failed=failures.count, refresh=False)
            else:
                store.add_line(row["line"])
                made += 1
            bar.update(1)
    return made


def _held(jobs: Iterable[Job], store: Store, failures: FailureFile) -> Iterator[Job]:
    """The jobs whose answers the store can hold; the questions of all others are written to `failures`."""
    for job in jobs:
        if why := store.refuses(job.item):
            for question in job.questions:
                failures.add(job.item, question, RequestError(why))
        else:
            yield job
