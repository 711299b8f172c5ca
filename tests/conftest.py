"""Fixtures that several test modules use."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator, Iterator
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fake_runner import PATIENCE_S, Clock, FakeRunner, config
from forked import Forker, forker
from goldens import Goldens

from florence.engine.config import EngineConfig
from florence.engine.loop import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HAS_SERVICE = all(map(find_spec, ("pydantic", "bentoml", "grpc")))

if TYPE_CHECKING or HAS_SERVICE:
    import hypothesis
    from dispatching import MAX_QUEUE, Gauges, SlowPicture, input_size
    from fake_model import FakeModel
    from fake_web import FakeWeb
    from serving import Server, serving_demo, serving_fake
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from florence import Florence2
    from florence.cli import main
    from florence.readers.readers import ThreadReaders
    from florence.runtime.dispatcher import Dispatcher
    from florence.server.v2.http_app import V2App
    from florence.server.v2.inference import Inference, ModelRepository
    from florence.settings import Settings

    # No test's outcome hangs on how busy the machine is: no example has a time limit.
    hypothesis.settings.register_profile(
        "florence", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("florence")
else:  # a machine with a GPU and little else: the tests for it are those of the model and the engine
    _here = Path(__file__).parent
    collect_ignore = [path.name for path in _here.glob("test_*.py") if "test_gpu" not in path.name]


def pytest_configure() -> None:
    """Children can be interrupted, also where a shell started the tests in the background, with SIGINT
    ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Output that is not text, as some tests make it, is marked: xdist's workers can't send it as it is."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded by now stays: Python's collector of cycles need not go through it again and again."""
    gc.disable()
    found = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first: no worker has one left when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models run faster, and sums come out the same everywhere, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """What a module's models have left goes back to the system: glibc would keep gigabytes of it."""
    yield
    CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, protocol facts and photographs beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder is not here")
    return folder


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Goldens:
    """What Microsoft's own code gave on the small random checkpoint."""
    return Goldens(shared / "goldens" / "A")


@pytest.fixture(scope="session")
def evaluators() -> None:
    """The packages that measure answers; `make install` has them."""
    for package in ("pycocotools", "pycocoevalcap"):
        pytest.importorskip(package, reason='answers are measured with the extra "evaluate"')


@pytest.fixture(scope="session")
def library(goldens: Goldens) -> Iterator[Florence2]:
    """That checkpoint as a Python object."""
    with Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32", threads=1) as loaded:
        yield loaded


@pytest.fixture
def picture(goldens: Goldens) -> Path:
    """One of the goldens' pictures."""
    return goldens.path("a0_rgb_640x480.png")


@pytest.fixture
def runner() -> FakeRunner:
    """A device for `engine`, or for an engine that a test makes."""
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    """It decodes one request at a time, and four may wait."""
    limits = config(max_batch_size=1, max_queue=4)
    engine = Engine(runner, limits, clock=runner.clock)
    yield engine
    runner.gate.set()
    engine.close(drain_s=PATIENCE_S)


@pytest.fixture
def gauges() -> Gauges:
    """What `dispatcher` counts."""
    return Gauges()


@pytest.fixture
def clock() -> Clock:
    """The dispatcher's and the engine's: no request expires unless a test moves it."""
    return Clock()


@pytest.fixture
def dispatcher(library: Florence2, runner: FakeRunner, gauges: Gauges, clock: Clock) -> Iterator[Dispatcher]:
    """Before an engine that decodes one request at a time, and lets four wait."""
    limits = EngineConfig(max_batch_size=1, max_queue=MAX_QUEUE)
    engine = Engine(runner, limits, observer=gauges, clock=clock)
    pipeline = library.pipeline
    made = Dispatcher(pipeline, engine, ThreadReaders(input_size(library)), gauges, clock=clock)
    yield made
    runner.gate.set()
    made.close(drain_s=PATIENCE_S)


@pytest.fixture
def slow(picture: Path) -> Iterator[SlowPicture]:
    """`picture`, which no reader has read before the test lets it."""
    made = SlowPicture(picture.read_bytes())
    yield made
    made.release.set()


@pytest.fixture
def model() -> Iterator[FakeModel]:
    """A fake model, for the modules that test what stands before a model and have none of their own."""
    fake = FakeModel()
    yield fake
    fake.close()


@pytest.fixture
def app(model: FakeModel) -> Starlette:
    """The v2 routes before `model`."""
    inference = Inference(timeout_s=5.0)
    inference.model = model
    return V2App(ModelRepository([inference]), 10_000_000)


@pytest.fixture(scope="session")
def shared_model() -> FakeModel:
    """Behind the one service that a process can have: BentoML claims its metrics' names for ever."""
    return FakeModel()


@pytest.fixture(scope="session")
def web() -> FakeWeb:
    """The hosts that the one service can reach."""
    return FakeWeb()


@pytest.fixture(scope="session")
def shared_client(shared_model: FakeModel, web: FakeWeb) -> Iterator[TestClient]:
    from florence.server import service

    settings = Settings(max_body_bytes=200_000, grpc_port=0)
    built = service.build_service(
        settings, 0, lambda _settings, _device, _observer: shared_model, fetcher=web.fetcher()
    )
    with TestClient(built.to_asgi(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def served(shared_model: FakeModel) -> FakeModel:
    """The model of the one service, as if nothing had been asked yet."""
    shared_model.calls.clear()
    shared_model.error = None
    shared_model.own = []
    return shared_model


@pytest.fixture
def client(shared_client: TestClient, served: FakeModel) -> TestClient:
    """HTTP to the one service, with `served` behind it."""
    return shared_client


@pytest.fixture(scope="session")
def forks() -> Iterator[Forker]:
    """Programs in forks of a process that has imported torch and transformers; see `forked`."""
    with forker() as started:
        yield started


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """A real `bentoml serve` with the demo checkpoint; see `serving.serving_demo`."""
    with serving_demo() as started:
        yield started


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Server]:
    """A real `bentoml serve` with a fake model; bodies have 3 MB at most."""
    with serving_fake(FLORENCE_MAX_BODY_BYTES="3000000") as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; for one module, since Playwright's loop runs in this thread until it ends."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def florence(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A `florence` command line's exit status, and what it prints on stdout and stderr."""

    def ran(*argv: object) -> tuple[int, str, str]:
        try:
            status = main([str(part) for part in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ran
