"""Clients for many threads, and load balancing over several services: each request goes to the one with the
fewest requests in flight (least connections).

A service that can't be reached, or is busy, is skipped for a while and then tried again (exponential
back-off); its requests go to the others. Knows nothing about what is asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from florence.client import Client
from florence.client.errors import ConnectionLost, Unreachable
from florence.errors import Unavailable

T = TypeVar("T")
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
_LOOK_S = 0.5  # interval at which a waiting request checks whether to go on waiting


class IdleClients:
    """Clients of one service. Each call has one for itself: threads that share a pool of connections wait for
    its lock, which takes a quarter of a request's CPU time at 32 of them. As many are kept as were ever used
    at the same time.

    `make`: connects a client. Thread-safe.
    """

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._idle: deque[Client] = deque()

    def call(self, ask: Callable[[Client], T]) -> T:
        """Call `ask` with the client that was used last, whose connection is most likely still open."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._make()
        try:
            return ask(client)
        finally:
            self._idle.append(client)

    def close(self) -> None:
        """Close all clients, once no thread asks any more."""
        while self._idle:
            self._idle.pop().close()


@dataclass
class _Service:
    url: str
    clients: IdleClients
    under_way: int = 0
    retry_at: float = 0.0
    failures: int = 0  # connections that failed in a row


class Services:
    """Clients by URL. They must not retry themselves: another service is asked at once.

    `tell`: called with a sentence when a service is skipped, and when it is back. `patience_s`: seconds that
    a request waits for a service before it fails. `stopped`: once set, nothing waits. Thread-safe.
    """

    def __init__(
        self,
        clients: Iterable[tuple[str, IdleClients]],
        tell: Callable[[str], None],
        *,
        patience_s: float = 300.0,
        stopped: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.services = [_Service(url, each) for url, each in clients]
        self._tell, self._patience_s, self._clock = tell, patience_s, clock
        self._stopped = stopped or threading.Event()
        self._change = threading.Condition()

    def check(self) -> None:
        """Skip services that can't be reached. Raises `Unreachable` if none can."""
        reached = 0
        for service in self.services:
            try:
                service.clients.call(lambda client: client.ready())
                reached += 1
            except (Unreachable, ConnectionLost) as error:
                last = error
                self.back_off(service, error)
        if not reached:
            raise last

    def call(self, ask: Callable[[Client], T]) -> T:
        """Call `ask` with one of the clients. Raises what it raises; errors of a service that can't be
        reached, is busy or broke the connection are only raised when no other service takes the request in
        time."""
        end = self._clock() + self._patience_s
        while True:
            service = self._take()
            try:
                answer = service.clients.call(ask)
            except (Unavailable, ConnectionLost) as error:
                self.back_off(service, error)
                if self._clock() >= end or self._stopped.is_set():
                    raise
            else:
                self._mark_reached(service)
                return answer
            finally:
                with self._change:
                    service.under_way -= 1
                    self._change.notify_all()

    def close(self) -> None:
        """Close the clients."""
        for service in self.services:
            service.clients.close()

    def _take(self) -> _Service:
        """The available service with the fewest requests in flight; waits for one. A service that could not
        be reached gets a single request at first, to see whether it is back."""
        with self._change:
            while True:
                now = self._clock()
                available = [each for each in self.services if each.retry_at <= now]
                available = [each for each in available if not (each.failures and each.under_way)]
                if available:
                    chosen = min(available, key=lambda each: (not each.failures, each.under_way))
                    chosen.under_way += 1
                    return chosen
                waits = [each.retry_at - now for each in self.services if each.retry_at > now]
                if self._stopped.is_set():
                    raise Unavailable("the run was stopped before a service took the request")
                self._change.wait(min([*waits, _LOOK_S]))

    def back_off(self, service: _Service, error: Unavailable | ConnectionLost) -> None:
        """Skip the service for a while: the time that it asks for, or twice as long after each failed
        connection."""
        with self._change:
            unreachable = isinstance(error, Unreachable | ConnectionLost)
            first = unreachable and not service.failures
            now = self._clock()
            # Otherwise another request at the same time has reported it.
            if unreachable and service.retry_at <= now:
                service.failures += 1
            backoff_s = min(MIN_BACKOFF_S * 2 ** max(service.failures - 1, 0), MAX_BACKOFF_S)
            if not unreachable and isinstance(error, Unavailable):
                backoff_s = error.retry_after_s
            service.retry_at = max(service.retry_at, now + backoff_s)
            self._change.notify_all()
        if first:
            self._tell(f"{service.url} is left out, and tried again: {error}")

    def _mark_reached(self, service: _Service) -> None:
        with self._change:
            back, service.failures = service.failures > 0, 0
        if back:
            self._tell(f"{service.url} answers again")
