"""Shares of the queue by owner: many requests under one key leave room for others, and every place is
returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextvars import ContextVar
from pathlib import Path

import pytest
from dispatching import SlowPicture, ask, input_size
from fake_runner import Clock, FakeRunner
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S, wait_until

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.engine.loop import Engine
from florence.engine.observer import FinishReason, Observer, RequestReport
from florence.errors import Overloaded
from florence.readers.readers import ThreadReaders
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.shares import NO_OWNER, Shares

QUEUE, SHARE = 8, 4
owner: ContextVar[str] = ContextVar("owner", default=NO_OWNER)


class Reports(Observer):
    """An observer that keeps the reports of requests."""

    def __init__(self) -> None:
        self.reports: list[RequestReport] = []

    def finished(self, report: RequestReport) -> None:
        """Keep the report."""
        self.reports.append(report)


@pytest.fixture
def reports() -> Reports:
    """The observer of the tests' requests."""
    return Reports()


@pytest.fixture
def sharing(library: Florence2, runner: FakeRunner, reports: Reports) -> Iterator[Dispatcher]:
    """A dispatcher with an engine that decodes one request at a time; an owner may use half of the queue."""
    clock = Clock()
    engine = Engine(runner, EngineConfig(max_batch_size=1, max_queue=QUEUE), observer=reports, clock=clock)
    shares = Shares(SHARE, owner.get)
    made = Dispatcher(
        library.pipeline, engine, ThreadReaders(input_size(library)), reports, shares=shares, clock=clock
    )
    yield made
    runner.gate.set()
    made.close(drain_s=PATIENCE_S)


@pytest.mark.parametrize("unread", [True, False])
def test_a_flood_of_one_key_does_not_starve_another(
    sharing: Dispatcher, runner: FakeRunner, picture: Path, reports: Reports, unread: bool
) -> None:
    """Requests over one key's share get a 503 with a time to retry, whether they wait for readers or for
    the engine. Another key's requests are answered, and later its own again."""
    slow = SlowPicture(picture.read_bytes())
    runner.gate.clear()
    owner.set("flood")
    flood = [future for _ in range(3 * QUEUE) for future in ask(sharing, slow if unread else picture)]
    if not unread:
        wait_until(lambda: runner.started.is_set() and sharing.engine.snapshot().waiting > 0)
    refused = [future for future in flood if future.done()]
    assert len(refused) >= len(flood) - SHARE - 2  # one may be decoded, and one encoded
    for future in refused:
        error = future.exception()
        assert isinstance(error, Overloaded)
        assert "'flood'" in str(error)
        assert error.retry_after_s >= 1
    owner.set("other")
    others = [future for _ in range(SHARE) for future in ask(sharing, picture)]
    assert not any(future.done() for future in others)
    slow.release.set()
    runner.gate.set()
    assert all(isinstance(future.result(PATIENCE_S), Answer) for future in others)
    owner.set("flood")
    wait([future for future in flood if future not in refused], PATIENCE_S)
    assert isinstance(ask(sharing, picture)[0].result(PATIENCE_S), Answer)
    wait_until(lambda: len(reports.reports) == len(flood) + len(others) + 1)
    counted = Counter((report.owner, report.outcome) for report in reports.reports)
    assert counted["flood", FinishReason.REFUSED] == len(refused)
    assert counted["other", FinishReason.STOP] == SHARE


def test_without_a_key_the_whole_queue_is_there(
    sharing: Dispatcher, runner: FakeRunner, picture: Path
) -> None:
    """Without API keys the whole queue is shared."""
    slow = SlowPicture(picture.read_bytes())
    owner.set(NO_OWNER)
    futures = [future for _ in range(QUEUE + 3) for future in ask(sharing, slow)]
    assert sum(not future.done() for future in futures) == QUEUE
    slow.release.set()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.booleans())))
def test_shares_count_each_waiting_request_once(story: list[tuple[str, int, bool]]) -> None:
    """In any order of entering and leaving, also repeated, an owner at its limit is refused."""
    shares, waiting = Shares(2, owner.get), {name: set[int]() for name in "ab"}
    for name, number, enters in story:
        (shares.enter if enters else shares.leave)(name, number)
        (waiting[name].add if enters else waiting[name].discard)(number)
        for each, numbers in waiting.items():
            if len(numbers) < 2:
                shares.check(each, float)
            else:
                with pytest.raises(Overloaded) as raised:
                    shares.check(each, lambda count: 7.0 * count)
                assert raised.value.retry_after_s == 7.0 * len(numbers)


def test_a_report_says_the_whole_way(sharing: Dispatcher, picture: Path, reports: Reports) -> None:
    """A report has the task, beams, tokens, picture size and times; an invalid request's report has only
    its end."""
    answer = ask(sharing, picture)[0].result(PATIENCE_S)
    wait_until(lambda: len(reports.reports) == 1)
    ask(sharing, b"no picture")[0].exception(PATIENCE_S)
    wait_until(lambda: len(reports.reports) == 2)
    ask(sharing, picture, "nonsense")[0].exception(PATIENCE_S)
    wait_until(lambda: len(reports.reports) == 3)
    good, unreadable, unknown = reports.reports
    assert (good.task, good.outcome, good.picture_size) == ("caption", FinishReason.STOP, (640, 480))
    assert good.tokens == answer.usage.generated_tokens
    assert good.beams == 3
    parts = (good.read_s, good.queue_s, good.encode_s, good.decode_s)
    assert None not in parts
    assert (unreadable.task, unreadable.outcome, unreadable.read_s) == ("caption", FinishReason.INVALID, None)
    assert (unknown.task, unknown.outcome) == ("", FinishReason.INVALID)
