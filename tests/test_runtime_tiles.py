"""A picture in tiles has one outcome, and costs as much as one request for each tile.

The pipeline is real, the device is a fake.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from dispatching import Gauges, ask, input_size
from fake_runner import Clock, FakeRunner
from pictures import drawn
from waiting import PATIENCE_S, wait_until

from florence import Florence2
from florence.answers.answer import Answer
from florence.engine.config import EngineConfig
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.loop import Engine
from florence.errors import DeadlineExceeded, EngineError, OptionError, Overloaded, TaskError
from florence.images.seen import SEEN, View
from florence.images.tiles import Tiling
from florence.readers.picture import LocalReader, PictureSource, ReadPicture
from florence.readers.readers import Readers
from florence.runtime.dispatcher import Dispatcher
from florence.runtime.gathering import Gathering
from florence.runtime.pipeline import TaskRequest
from florence.runtime.shares import Shares
from florence.types.options import RequestParameters

QUEUE = 8


class Noting(LocalReader):
    """A reader that keeps weak references to the pixels of tiles."""

    pixels: list[Any]

    def read(self, image: PictureSource, view: View = SEEN) -> ReadPicture:
        """Read the picture and keep the references."""
        read = super().read(image, view)
        self.pixels = [ref(tile.pixels) for tile in read.tiles]
        return read


@pytest.fixture
def reader(library: Florence2) -> Noting:
    """The reader of the tests' pictures."""
    return Noting(input_size(library))


@pytest.fixture
def shares() -> Shares:
    """Shares of one owner, which may have six waiting requests."""
    return Shares(6, lambda: "an owner")


@pytest.fixture
def tiled(
    library: Florence2, runner: FakeRunner, gauges: Gauges, clock: Clock, reader: Noting, shares: Shares
) -> Iterator[Dispatcher]:
    """A dispatcher with an engine that decodes one request at a time, and a queue of eight."""
    limits = EngineConfig(max_batch_size=1, max_queue=QUEUE)
    engine = Engine(runner, limits, observer=gauges, clock=clock)
    made = Dispatcher(library.pipeline, engine, Readers([reader]), gauges, shares=shares, clock=clock)
    yield made
    runner.gate.set()
    made.close(drain_s=PATIENCE_S)


def cut(dispatcher: Dispatcher, columns: int, task: str = "<OD>", **options: Any) -> Future[Answer]:
    """Ask about a picture of this many tiles in a row."""
    parameters = RequestParameters(tiles=f"{columns}x1")
    request = TaskRequest(task, None, parameters, **options)
    view = replace(SEEN, tiling=Tiling((columns, 1), 1.0, (0.2, 0.2)))
    return dispatcher.submit(drawn(400, 100), [request], view)[0]


def answer_then_stop(
    runner: FakeRunner, outcomes: list[Hypothesis | EngineError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give the next requests these outcomes; then the device waits at its gate."""

    def outcome(number: int) -> Hypothesis | EngineError:
        if len(outcomes) == 1:
            runner.gate.clear()
        return outcomes.pop(0)

    monkeypatch.setattr(runner, "outcome", outcome)


def test_each_tile_is_a_request_and_the_answer_comes_with_the_last(
    tiled: Dispatcher, runner: FakeRunner
) -> None:
    """Each tile is a request; progress counts from none to all of them in order, and tokens are summed."""
    progress = list[tuple[int, int]]()
    answer = cut(tiled, 4, on_tile=lambda done, count: progress.append((done, count))).result(PATIENCE_S)
    assert len(runner.order) == answer.tiles == 4
    assert progress == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert answer.usage.generated_tokens == len(answer.token_logprobs) == 8
    assert len(answer.token_ids) == 12


@pytest.mark.parametrize("task", ["<OD>", "<OCR>"])
def test_a_picture_of_one_tile_is_an_ordinary_request(tiled: Dispatcher, task: str) -> None:
    """With one tile the task is asked about the whole picture."""
    answer = cut(tiled, 1, task).result(PATIENCE_S)
    plain = ask(tiled, drawn(400, 100), task)[0].result(PATIENCE_S)
    assert answer.tiles == 1
    assert (answer.result, answer.usage, answer.raw_text) == (plain.result, plain.usage, plain.raw_text)


def test_tiles_that_find_no_room_are_refused_together(tiled: Dispatcher, runner: FakeRunner) -> None:
    """Tiles over the queue or the owner's share are refused together, and all their places are free again."""
    for owner in ("", "an owner"):
        tiled.shares.owner = lambda owner=owner: owner  # type: ignore[misc]
        runner.gate.clear()
        runner.started.clear()
        first = ask(tiled, drawn(), "<CAPTION>")
        assert runner.started.wait(PATIENCE_S)
        waiting = cut(tiled, 5)
        wait_until(lambda: tiled.engine.snapshot().waiting == 5)
        with pytest.raises(Overloaded, match=r"8 requests|API key"):
            cut(tiled, 4).result(PATIENCE_S)
        assert tiled.engine.snapshot().waiting == 5
        runner.gate.set()
        assert isinstance(first[0].result(PATIENCE_S), Answer)
        assert waiting.result(PATIENCE_S).tiles == 5
        assert cut(tiled, 6).result(PATIENCE_S).tiles == 6
        wait_until(lambda: not any(tiled.shares.waiting.values()))


def test_a_cancelled_request_takes_all_its_tiles_out(
    tiled: Dispatcher, runner: FakeRunner, reader: Noting
) -> None:
    """Cancelling removes waiting tiles and the one on the device, and returns places and pixels."""
    runner.gate.clear()
    future = cut(tiled, 6)
    wait_until(lambda: tiled.engine.snapshot().waiting == 5)
    gc.disable()
    try:
        assert future.cancel()
        wait_until(lambda: tiled.engine.snapshot().waiting == 0)
        runner.gate.set()
        wait_until(lambda: all(pixels() is None for pixels in reader.pixels))
    finally:
        gc.enable()
    assert len(runner.order) == 1
    wait_until(lambda: not any(tiled.shares.waiting.values()))
    with pytest.raises(CancelledError):
        future.result()


def test_a_time_limit_holds_for_all_tiles(tiled: Dispatcher, runner: FakeRunner, clock: Clock) -> None:
    """The time limit applies to all tiles of a request."""
    runner.gate.clear()
    future = cut(tiled, 5, timeout_s=10.0)
    wait_until(lambda: tiled.engine.snapshot().waiting == 4)
    clock.now += 11
    with pytest.raises(DeadlineExceeded):
        future.result(PATIENCE_S)
    wait_until(lambda: tiled.engine.snapshot().waiting == 0)
    assert len(runner.order) == 1


def test_a_tile_that_fails_ends_the_request(
    tiled: Dispatcher, runner: FakeRunner, reader: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed tile ends the request with its error; later tiles are not asked, and no pixels are kept."""
    outcomes = [Hypothesis([2, 7, 2], [0.0, 0.0], 0.0), EngineError("not numbers")]
    answer_then_stop(runner, outcomes, monkeypatch)
    gc.disable()
    try:
        future = cut(tiled, 6)
        with pytest.raises(EngineError, match="not numbers"):
            future.result(PATIENCE_S)
        wait_until(lambda: tiled.engine.snapshot().waiting == 0)
        wait_until(lambda: all(pixels() is None for pixels in reader.pixels))
    finally:
        gc.enable()
    wait_until(lambda: not any(tiled.shares.waiting.values()))


def test_pixels_of_tiles_that_are_done_are_let_go(
    tiled: Dispatcher, runner: FakeRunner, reader: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of a finished tile are released while others are still waited for."""
    answer_then_stop(runner, [Hypothesis([2, 7, 2], [0.0, 0.0], 0.0)], monkeypatch)
    future = cut(tiled, 3)
    wait_until(lambda: getattr(reader, "pixels", None) and reader.pixels[0]() is None)
    assert not future.done()
    assert reader.pixels[2]() is not None
    monkeypatch.undo()
    runner.gate.set()
    assert future.result(PATIENCE_S).tiles == 3


def test_a_callback_for_tiles_that_fails_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """A failing progress callback is not called again, and outcomes after the request's own are ignored."""
    calls, outcomes = list[tuple[int, int]](), list[Any]()

    def on_tile(done: int, count: int) -> None:
        calls.append((done, count))
        raise RuntimeError("no")

    gathering = Gathering(2, outcomes.append, on_tile)
    gathering.tell()
    failure = EngineError("one")
    for outcome in (failure, EngineError("two")):
        gathering.take(0, outcome)
    assert (calls, outcomes) == ([(0, 2)], [failure])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("<CAPTION>", {"tiles": "auto"}, TaskError, "<CAPTION> can't be asked in tiles.*<OD>.*<OCR>"),
        ("<REGION_TO_OCR>", {"tiles": "2x2", "region": (0, 0, 9, 9)}, TaskError, "leave tiles out"),
        ("<CAPTION_TO_PHRASE_GROUNDING>", {"tiles": "2x2", "text": "a car"}, TaskError, "in tiles"),
        ("<OD>", {"tiles": "16x9"}, OptionError, "144 tiles; up to 128 are allowed .FLORENCE_MAX_TILES"),
        ("<OD>", {"tiles": "3x"}, OptionError, "tiles must be off, auto or a grid such as 3x4"),
        ("<OD>", {"tiles": "0x4"}, OptionError, "a grid such as 3x4"),
        ("<OD>", {"tile_scale": 2}, OptionError, "tile_scale: nothing is cut without tiles=auto"),
        ("<OD>", {"tiles": "2x2", "tile_scale": 2}, OptionError, "with tiles=2x2 leave it out"),
        ("<OD>", {"tiles": "auto", "tile_overlap": 0.95}, OptionError, "a number from 0 to 0.9"),
        ("<OCR>", {"tiles": "2x2", "num_beams": 1, "on_text": print}, OptionError, "can't be streamed"),
    ],
)
def test_what_cant_be_cut_says_why(
    library: Florence2, picture: Path, task: str, options: Any, error: type[Exception], message: str
) -> None:
    """A wrong use of tiles is refused before the picture is read, with the reason."""
    text = options.pop("text", None)
    with pytest.raises(error, match=message):
        library.submit(picture, task, text, **options).result(PATIENCE_S)


def test_off_is_as_if_it_were_left_out(library: Florence2, picture: Path) -> None:
    """With tiles=off, for clients with a switch, other options of tiles have no effect."""
    plain = library.run(picture, "<CAPTION>", max_new_tokens=5)
    off = library.run(picture, "<CAPTION>", max_new_tokens=5, tiles="off", tile_scale=2)
    assert off.token_ids == plain.token_ids


def test_many_pictures_in_tiles_are_not_too_many_at_once(library: Florence2) -> None:
    """`run_many` has only as many pictures in flight as the queue has room for their tiles."""
    assert library.room() == library.info()["limits"]["max_queue"]
    assert library.room(tiles="8x4") == library.info()["limits"]["max_queue"] // 32
    assert library.room(tiles="auto") == library.info()["limits"]["max_queue"] // 128
