"""`florence bulk`: tasks on many pictures, into a file that a second run completes."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, current_thread, main_thread

from tqdm import tqdm  # type: ignore[import-untyped]

from florence.bulk.items import Pages, PictureItem
from florence.bulk.lines import FailureFile
from florence.bulk.lock import only_run
from florence.bulk.question import PictureQuestion, distinct, read_tasks_file
from florence.bulk.run import Ask, Job, QuestionOutcome, Running, RunTally, Shard, open_jobs
from florence.bulk.sources import Sources
from florence.bulk.store import AnsweredTasks, Store
from florence.cli.asking import (
    find_task,
    max_picture_bytes,
    open_asker,
    question_options,
    read_options,
    read_question,
)
from florence.cli.bulk_ray import ask_on_ray, check_ray
from florence.cli.export import export_results, read_exports
from florence.cli.telling import SOME_FAILED, tell_lines
from florence.errors import FlorenceError, RequestError, TaskError, words_of
from florence.types.tasks import Input, Task


def bulk(arguments: argparse.Namespace) -> int:
    """`florence bulk`."""
    store = Store(arguments.out, arguments.part_rows)
    failures = arguments.failures or store.out.with_suffix(".failures.jsonl")
    store.check(failures)
    check_ray(arguments)
    with only_run(store.out):
        return _bulk(arguments, store, failures)


def _bulk(arguments: argparse.Namespace, store: Store, failures: Path) -> int:
    exports = read_exports(arguments)
    questions = read_questions(arguments)
    sources, shard = read_sources(arguments, questions), Shard.parse(arguments.shard)
    on_ray = arguments.ray is not None
    if on_ray:
        sources = replace(sources, archives=[])
    answered = store.answered()
    if not sources.have_questions:
        _tell_others(store, answered, questions)

    def jobs(tally: RunTally) -> Iterator[Job]:
        return open_jobs(sources.items(), questions, answered, shard, tally)

    tally, made = RunTally(), 0
    total = sum(len(job.questions) for job in jobs(tally)) if sources.countable else None
    with store, FailureFile(failures) as failed:
        if total != 0:
            tally = RunTally()
            if on_ray:
                made = ask_on_ray(jobs(tally), questions, sources, answered, store, failed, arguments)
            else:
                run = _Run(store, failed, total)
                with open_asker(arguments, run.stopped) as ask:
                    made = run.ask_all(jobs(tally), ask, arguments)
    _tell_end(made, tally, failed.count, failures, sources)
    failed_exports = [export for export in exports if export_results(export, store.out, arguments)]
    return SOME_FAILED if failed.count or failed_exports else 0


def read_questions(arguments: argparse.Namespace) -> tuple[PictureQuestion, ...]:
    """The questions about each picture, from --tasks, each --task, or --prompt; a manifest's rows have their
    own.

    --text and --region go to the tasks that take one. Raises TaskError where none does.
    """
    if arguments.tasks is not None:
        if arguments.text is not None or arguments.region is not None:
            raise TaskError("the texts and regions of --tasks are in its file; leave --text and --region out")
        return read_tasks_file(
            arguments.tasks, lambda name: _find(arguments, name), question_options(arguments)
        )
    names: Sequence[str] = arguments.task or []
    if len(names) < 2:
        one = _with_task(arguments, names[0] if names else None)
        asked = names or arguments.prompt is not None
        return (read_question(one).checked(),) if asked else ()
    options = question_options(arguments)
    tasks = [_find(arguments, name) for name in names]
    for flag, given, takes in (
        ("--text", arguments.text, Input.TEXT), ("--region", arguments.region, Input.REGION)
    ):  # fmt: skip
        if given is not None and not any(each.input is takes for each in tasks):
            raise TaskError(f"none of these tasks takes what {flag} gives; leave it out")
    questions = (PictureQuestion(task, options=options) for task in tasks)
    return distinct(each.with_given(arguments.text, arguments.region).checked() for each in questions)


def read_sources(arguments: argparse.Namespace, questions: tuple[PictureQuestion, ...]) -> Sources:
    """The pictures that the command line names. Raises RequestError for malformed pages."""
    options = read_options(arguments)
    if arguments.pages is not None and options.page is not None:
        raise RequestError("--page and --pages are both given; --pages may also name one page")
    one = None if options.page is None else str(options.page)
    pages = arguments.pages or one
    return Sources(
        arguments.sources,
        recursive=arguments.recursive,
        pages=None if pages is None else Pages.parse(pages),
        frame=options.frame,
        find=lambda name: _find(arguments, name),
        questions=questions,
        options=question_options(arguments),
        max_bytes=max_picture_bytes(arguments),
    )


@contextmanager
def interrupts(handle: Callable[[], None]) -> Iterator[None]:
    """A context in which the first Ctrl-C calls `handle`; a second one raises KeyboardInterrupt. A process in
    which Ctrl-C does something else, or nothing, is left as it is."""
    plain = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is not plain or current_thread() is not main_thread():
        yield
        return

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, plain)
        handle()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, plain)


class _Run:
    """Asks the questions; writes answers to the store and failures to their file."""

    def __init__(self, store: Store, failures: FailureFile, total: int | None) -> None:
        self._store, self._failures, self._total = store, failures, total
        self._made = 0
        self.stopped = Event()

    def ask_all(self, jobs: Iterator[Job], ask: Ask, arguments: argparse.Namespace) -> int:
        """Ask them all; returns the number of new answers. An interrupt raises KeyboardInterrupt with a
        message that says what was kept, and a file that can't be written FlorenceError with the same."""
        bar = tqdm(total=self._total, unit="answer", disable=True if arguments.no_progress else None)
        running = Running(
            jobs,
            self._refusing(ask),
            concurrency=arguments.concurrency,
            ordered=arguments.ordered,
            stopped=self.stopped,
        )
        with running, bar, interrupts(running.interrupt):
            try:
                for job, outcomes in running:
                    self._keep(job, outcomes)
                    bar.update(len(outcomes))
                    if self._failures.count:
                        bar.set_postfix(failed=self._failures.count, refresh=False)
            except KeyboardInterrupt:
                for job, outcomes in running.drain():  # what fails now will be asked again
                    self._keep(job, outcomes, failures=False)
                raise KeyboardInterrupt(f"interrupted: {self._kept()}") from None
            except OSError as error:  # of the files: a full disk, for instance
                raise FlorenceError(f"{words_of(error)}: {self._kept()}") from error
        return self._made

    def _kept(self) -> str:
        left = "rest" if self._total is None else f"other {self._total - self._made}"
        kept = f"{self._made} answers are kept in {self._store.lines}"
        return f"{kept}; the same command asks for the {left}"

    def _keep(self, job: Job, outcomes: Sequence[QuestionOutcome], *, failures: bool = True) -> None:
        for question, outcome in zip(job.questions, outcomes, strict=True):
            if isinstance(outcome, FlorenceError):
                if failures:
                    self._failures.add(job.item, question, outcome)
            else:
                self._store.add(job.item, question, outcome)
                self._made += 1

    def _refusing(self, ask: Ask) -> Ask:
        """`ask`, except that all questions about a picture that the store can't hold fail."""

        def asked(item: PictureItem, questions: Sequence[PictureQuestion]) -> Sequence[QuestionOutcome]:
            if why := self._store.refuses(item):
                return [RequestError(why)] * len(questions)
            return ask(item, questions)

        return asked


def _find(arguments: argparse.Namespace, name: str) -> Task:
    return find_task(_with_task(arguments, name))


def _with_task(arguments: argparse.Namespace, name: str | None) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), "task": name})


def _tell_others(store: Store, answered: AnsweredTasks, questions: Sequence[PictureQuestion]) -> None:
    asked = {each.key for each in questions}
    others = {key: names for key, names in answered.items() if key not in asked}
    if others:
        tasks = ", ".join(sorted({task for task, *_ in others}))
        count = sum(map(len, others.values()))
        what = f"{count} other answers, of {tasks}; name another --out to keep them apart"
        tell_lines([f"{store.out} also holds {what}"])


def _tell_end(made: int, tally: RunTally, failed: int, failures: Path, sources: Sources) -> None:
    skipped = sources.skipped
    if tally.duplicates:
        skipped.reasons["named or asked twice"] = tally.duplicates
    if tally.other_shards:
        skipped.reasons["of other shards"] = tally.other_shards
    tell_lines(skipped.lines())
    before = f", {tally.answered} were there before" if tally.answered else ""
    why = f", {failed} failed: see {failures}" if failed else ""
    tell_lines([f"{made} answered{before}{why}"])
