"""`map`: answers as they arrive, failures at the end, and a limit on concurrent requests."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from waiting import PATIENCE_S

from florence.client import AsyncPictureMap, PictureMap
from florence.errors import ImageError, RequestError, SettingsError

CONCURRENCY = 4


class Asker:
    """A fake that answers a name in capitals, fails names that begin with "bad", and counts running calls.

    Calls end in groups: each waits until `together` of them are running.
    """

    def __init__(self, together: int = 1) -> None:
        self.lock = threading.Lock()
        self.all_here = threading.Barrier(together)
        self.now = self.most = self.asked = 0

    def __call__(self, picture: Any) -> str:
        with self.lock:
            self.asked += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.all_here.wait(PATIENCE_S)
        with self.lock:
            self.now -= 1
        if picture.startswith("bad"):
            raise ImageError(f"{picture} is not a picture")
        return str(picture).upper()

    async def awaited(self, picture: Any) -> str:
        """Answer in a thread."""
        return await asyncio.to_thread(self, picture)


class Awaited:
    """An AsyncPictureMap with the interface of a PictureMap, read to its end."""

    def __init__(self, asker: Asker, pictures: Any, **options: Any) -> None:
        self.options = options
        self.mapped: AsyncPictureMap[str] = AsyncPictureMap(asker.awaited, pictures, **options)

    def __iter__(self) -> Iterator[Any]:
        async def collect() -> list[Any]:
            return [pair async for pair in self.mapped]

        return iter(asyncio.run(collect()))

    @property
    def failures(self) -> list[Any]:
        """The failures of the map."""
        return self.mapped.failures


@pytest.fixture(params=[PictureMap, Awaited])
def mapping(request: pytest.FixtureRequest) -> Any:
    """The class of map under test."""
    return request.param


def test_every_picture_is_answered_once(mapping: Any) -> None:
    """Each picture of a generator gets its own answer once."""
    names = [f"p{number}" for number in range(30)]
    answers = dict(mapping(Asker(), (name for name in names), concurrency=CONCURRENCY))
    assert answers == {name: name.upper() for name in names}


def test_answers_can_come_in_the_pictures_order(mapping: Any) -> None:
    """With `ordered`, answers keep the pictures' order, failures are left out, and the limit on concurrency
    holds."""
    asker = Asker()
    names = [f"p{number}" if number % 7 else f"bad{number}" for number in range(40)]
    answers = list(mapping(asker, names, concurrency=CONCURRENCY, ordered=True))
    assert answers == [(name, name.upper()) for name in names if not name.startswith("bad")]
    assert asker.most <= CONCURRENCY


def test_no_more_at_once_than_was_said(mapping: Any) -> None:
    """The allowed number of requests run concurrently, and never more."""
    asker = Asker(together=CONCURRENCY)
    list(mapping(asker, [f"p{number}" for number in range(10 * CONCURRENCY)], concurrency=CONCURRENCY))
    assert asker.most == CONCURRENCY


def test_a_bad_picture_ends_nothing(mapping: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A failed picture does not stop the others; failures are kept with their errors, and one warning counts
    them."""
    names = ["a", "bad1", "b", "bad2", "c"]
    mapped = mapping(Asker(), names, concurrency=2)
    with caplog.at_level(logging.WARNING, logger="florence.client"):
        assert dict(mapped) == {"a": "A", "b": "B", "c": "C"}
    assert {failure.picture: str(failure.error) for failure in mapped.failures} == {
        "bad1": "bad1 is not a picture",
        "bad2": "bad2 is not a picture",
    }
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of 5 pictures failed; the first, bad")


def test_all_pictures_can_fail(mapping: Any) -> None:
    """If all pictures fail, there are no answers and all failures are kept."""
    mapped = mapping(Asker(), ["bad"] * 9, concurrency=2)
    assert list(mapped) == []
    assert len(mapped.failures) == 9


def test_no_pictures_no_answers(mapping: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without pictures there are no answers and no warnings."""
    assert list(mapping(Asker(), [], concurrency=2)) == []
    assert not caplog.records


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_wrong_concurrency_is_refused_at_once(mapping: Any, concurrency: int) -> None:
    """A concurrency below 1 is refused at once."""
    with pytest.raises(SettingsError, match="concurrency"):
        mapping(Asker(), ["a"], concurrency=concurrency)


@pytest.mark.parametrize(
    "picture",
    ["street.jpg", b"picture", Path("street.jpg"), Image.new("L", (1, 1))],
    ids=lambda picture: type(picture).__name__,
)
def test_one_picture_in_place_of_a_list_is_refused(mapping: Any, picture: Any) -> None:
    """A single picture in place of a list is refused; a path's letters would be taken for paths."""
    with pytest.raises(RequestError, match="list of pictures, got one"):
        mapping(Asker(), picture, concurrency=1)


def test_the_bar_counts_all_and_names_failures(mapping: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The progress bar counts all pictures and the failures."""
    list(mapping(Asker(), ["a", "bad", "c"], concurrency=1, progress=True))
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "failed=1" in shown


def test_the_bar_is_for_a_terminal(
    mapping: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress bar is shown only in a terminal by default."""
    list(mapping(Asker(), ["a", "b"], concurrency=1))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(mapping(Asker(), ["a", "b"], concurrency=1, progress=False))
    assert capsys.readouterr().err == ""
    list(mapping(Asker(), ["a", "b"], concurrency=1))
    assert "2/2" in capsys.readouterr().err


def test_closing_a_map_sends_no_more_requests() -> None:
    """After `close` no request is running and no other is sent."""
    asker = Asker()
    with PictureMap(asker, [f"p{number}" for number in range(100)], concurrency=CONCURRENCY) as mapped:
        next(mapped)
    assert asker.now == 0
    assert asker.asked <= 3 * CONCURRENCY


@pytest.mark.parametrize("left_by", ["aclose", "async with"])
def test_leaving_early_cancels_what_is_awaited(left_by: str) -> None:
    """After `aclose`, or the end of `async with`, all tasks of the map are cancelled."""
    stopped: list[str] = []

    async def ask(picture: Any) -> str:
        if picture == "quick":
            return "QUICK"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(picture)
            raise
        return "never"

    async def leave() -> None:
        mapped: AsyncPictureMap[str] = AsyncPictureMap(ask, ["slow", "quick", "slow"], concurrency=3)
        if left_by == "aclose":
            assert await anext(mapped) == ("quick", "QUICK")
            await mapped.aclose()
        else:
            async with mapped:
                assert await anext(mapped) == ("quick", "QUICK")
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(leave())
    assert stopped == ["slow", "slow"]


def test_an_unforeseen_error_is_not_swallowed(mapping: Any) -> None:
    """An error that is not the package's own is raised."""

    class Broken(Asker):
        """A fake whose calls raise an error that is not the package's."""

        def __call__(self, picture: Any) -> str:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(mapping(Broken(), ["a"], concurrency=1))
