"""Several services used as one: which is asked, which is left out, and when it is tried again. The clock is a
fake."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from waiting import wait_until

from florence.bulk.services import IdleClients, Services
from florence.client import ConnectionLost, Unreachable
from florence.errors import RequestError, Unavailable


class Fake:
    """A fake client that answers with its name, or raises an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: Exception | None = None
        self.asked = 0

    def ready(self) -> bool:
        """Return True or raise the error."""
        if self.error:
            raise self.error
        return True

    def ask(self) -> str:
        """Count the call; return the name or raise the error."""
        self.asked += 1
        if self.error:
            raise self.error
        return self.name

    def close(self) -> None:
        """Do nothing."""


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(*names: str, **options: Any) -> tuple[list[Fake], Services, Clock, list[str]]:
    """Fake clients with these names, their `Services`, its clock, and the list of its messages."""
    fakes, clock, told = [Fake(name) for name in names], Clock(), []
    clients: Any = [(fake.name, IdleClients(lambda fake=fake: fake)) for fake in fakes]
    return fakes, Services(clients, told.append, clock=clock, **options), clock, told


def ask(services: Services) -> str:
    """Ask one of the services."""
    return services.call(lambda client: client.ask())  # type: ignore[attr-defined]


def test_the_one_with_the_least_to_do_is_asked() -> None:
    """Six concurrent requests to three services go to each of them twice."""
    _, services, _, _ = make("a", "b", "c")
    together, seen = threading.Barrier(7), []

    def hold(client: Any) -> None:
        seen.append(client.name)
        together.wait(60)

    threads = [threading.Thread(target=services.call, args=(hold,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    together.wait(60)
    for thread in threads:
        thread.join()
    assert Counter(seen) == {"a": 2, "b": 2, "c": 2}


def test_calls_at_a_time_have_clients_of_their_own_and_later_ones_find_them() -> None:
    """There are no more clients than concurrent calls, even if threads change; all are closed at the end."""
    made, closed = [], []

    class Made(Fake):
        """A fake that records its making and its closing."""

        def __init__(self) -> None:
            super().__init__("")
            made.append(self)

        def close(self) -> None:
            closed.append(self)

    clients = IdleClients(Made)  # type: ignore[arg-type]
    for _ in range(4):
        together, used = threading.Barrier(3), []

        def ask(together: threading.Barrier = together, used: list[object] = used) -> None:
            used.append(clients.call(lambda client: (together.wait(60), client)[1]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, used))) == 3
    with pytest.raises(RequestError):
        clients.call(_fail)
    clients.close()
    assert len(made) == len(closed) == len(set(map(id, made))) == 3


def _fail(_: object) -> None:
    """Fail as a refused request does."""
    raise RequestError("what the call raises does not cost the client")


@pytest.mark.parametrize("error", [Unreachable("no connection"), ConnectionLost("it broke")])
def test_a_dead_service_is_left_out_and_tried_again(error: Exception) -> None:
    """A failures service's requests go to another; it is tried again after a pause that doubles.

    One message reports that it is left out, and one that it answers again.
    """
    (a, b), services, clock, told = make("a", "b")
    a.error = error
    assert [ask(services) for _ in range(5)] == ["b"] * 5
    assert a.asked == 1
    for rest_s, tries in ((1, 2), (2, 3), (4, 4)):
        clock.now += rest_s - 0.01
        assert ask(services) == "b"
        assert a.asked == tries - 1
        clock.now += 0.02
        assert ask(services) == "b"
        assert a.asked == tries
    assert told == [f"a is left out, and tried again: {error}"]
    a.error = None
    clock.now += 9
    assert {ask(services) for _ in range(2)} == {"a", "b"} or ask(services) == "a"
    assert told[1:] == ["a answers again"]
    assert b.asked >= 10


def test_a_busy_service_rests_as_long_as_it_says() -> None:
    """A busy service gets no requests for the time that it states, and no message reports this."""
    (a, b), services, clock, told = make("a", "b")
    a.error = Unavailable("the queue is full", retry_after_s=7)
    assert ask(services) == "b"
    a.error = None
    clock.now = 6.9
    assert [ask(services) for _ in range(3)] == ["b"] * 3
    clock.now = 7.1
    assert [ask(services) for _ in range(2)] == ["a"] * 2
    assert told == []
    assert b.asked == 4


def test_many_failures_at_a_time_count_as_one() -> None:
    """Several concurrent failures of a service count as one and do not lengthen its pause."""
    (a, _), services, clock, _ = make("a", "b")
    a.error = Unreachable("gone")
    first = services.services[0]
    for _ in range(9):
        services.back_off(first, Unreachable("gone"))
    assert (first.failures, first.retry_at) == (1, 1.0)
    clock.now = 1.5
    assert ask(services) == "b"
    assert first.failures == 2


def test_a_request_fails_where_no_service_takes_it() -> None:
    """A request fails with the last service's error after its patience; a wrong request fails at once."""
    (a, b), services, clock, _ = make("a", "b", patience_s=0.0)
    a.error = b.error = Unreachable("gone")
    with pytest.raises(Unreachable, match="gone"):
        ask(services)
    a.error = b.error = RequestError("no picture")
    clock.now = 100
    with pytest.raises(RequestError, match="no picture"):
        ask(services)


def test_a_start_needs_one_of_them() -> None:
    """A run starts if one service answers and reports the others; if none answers, the error is one of
    theirs."""
    (a, b), services, _, told = make("a", "b")
    a.error = Unreachable("gone")
    services.check()
    assert told == ["a is left out, and tried again: gone"]
    b.error = Unreachable("gone too")
    with pytest.raises(Unreachable, match="gone too"):
        services.check()


def test_a_stopped_run_waits_for_no_service() -> None:
    """A stopped run's request that waits for services to come back ends at once."""
    stopped = threading.Event()
    (a, b), services, _, _ = make("a", "b", stopped=stopped)
    a.error = b.error = Unreachable("gone")

    def stop_when_both_were_asked() -> None:
        wait_until(lambda: (a.asked, b.asked) == (1, 1))
        stopped.set()

    threading.Thread(target=stop_when_both_were_asked).start()
    with pytest.raises(Unavailable):
        ask(services)  # the clock stands still: no service is tried again
    assert (a.asked, b.asked) == (1, 1)
