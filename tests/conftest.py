"""Fixtures that several test modules use."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import torch
from fake_runner import Clock, FakeRunner, config
from forked import Forker, forker
from goldens import Goldens
from waiting import PATIENCE_S

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

    # Examples have no time limit, so a busy machine does not change a test's outcome. They are the same in
    # each run; `--hypothesis-profile=explore` draws others.
    _patient = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.register_profile("explore", _patient)
    hypothesis.settings.register_profile("florence", _patient, derandomize=True)
    hypothesis.settings.load_profile("florence")
else:  # a GPU machine without the service's packages runs only the GPU tests
    _here = Path(__file__).parent
    collect_ignore = [path.name for path in _here.glob("test_*.py") if "test_gpu" not in path.name]


def pytest_configure(config: pytest.Config) -> None:
    """Let the outcome depend on nothing of the machine: not on a proxy, the user's home and settings, the
    width of the terminal, or a shell that started the tests in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = TemporaryDirectory(prefix="florence-tests-")
    config.add_cleanup(home.cleanup)
    for name in settings_of(os.environ):
        del os.environ[name]
    os.environ |= {"BENTOML_HOME": home.name, "BENTOML_DO_NOT_TRACK": "true", "COLUMNS": "80"}
    if not os.access(os.environ.get("HOME", ""), os.W_OK):
        os.environ.setdefault("TRITON_CACHE_DIR", home.name)
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def settings_of(environment: Mapping[str, str]) -> list[str]:
    """The service's variables in an environment, without those that are about the tests."""
    tests = ("FLORENCE_CI", "FLORENCE_TEST_")
    return [name for name in environment if name.startswith("FLORENCE_") and not name.startswith(tests)]


def seed_torch(config: pytest.Config) -> None:
    """Seed torch, so that random models and tensors do not depend on the tests that ran before.

    `--hypothesis-seed` chooses other ones. The tests' other generators have seeds of their own.
    """
    torch.manual_seed(config.getoption("--hypothesis-seed", None) or 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test the same random tensors in each run."""
    seed_torch(item.config)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Give a fixture of several tests the same random tensors, whichever test needs it first, and leave that
    test's own as they are."""
    if fixturedef.scope == "function":
        return (yield)
    with torch.random.fork_rng(devices=[]):
        seed_torch(request.config)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Replace characters that can't be encoded in a test's output, since xdist's workers can't send them."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude what is loaded by now from garbage collection, which would scan it again and again."""
    gc.disable()
    found = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run modules with slow tests first, so that no worker still has one when the others have finished."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: small models run faster on it, and sums are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Return the memory that a module's models have freed to the system; glibc would keep gigabytes of it."""
    yield
    CDLL(None).malloc_trim(0)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings that other tests' commands have left in this process's environment."""
    for name in settings_of(os.environ):
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, protocol facts and photographs beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder is not here")
    return folder


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Goldens:
    """The results of Microsoft's own code on the small random checkpoint."""
    return Goldens(shared / "goldens" / "A")


@pytest.fixture(scope="session")
def evaluators() -> None:
    """Skip a test if the packages that measure answers are absent; `make install` installs them."""
    for package in ("pycocotools", "pycocoevalcap"):
        pytest.importorskip(package, reason='answers are measured with the extra "evaluate"')


@pytest.fixture(scope="session")
def library(goldens: Goldens) -> Iterator[Florence2]:
    """The goldens' checkpoint, loaded as a library object."""
    with Florence2.load(str(goldens.checkpoint), device="cpu", dtype="float32", threads=1) as loaded:
        yield loaded


@pytest.fixture
def picture(goldens: Goldens) -> Path:
    """The path of one of the goldens' pictures."""
    return goldens.path("a0_rgb_640x480.png")


@pytest.fixture
def runner() -> FakeRunner:
    """The fake device of `engine`, or of an engine that a test makes."""
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    """An engine that decodes one request at a time and lets four wait."""
    limits = config(max_batch_size=1, max_queue=4)
    engine = Engine(runner, limits, clock=runner.clock)
    yield engine
    runner.gate.set()
    engine.close(drain_s=PATIENCE_S)


@pytest.fixture
def gauges() -> Gauges:
    """The counters that `dispatcher` reports to."""
    return Gauges()


@pytest.fixture
def clock() -> Clock:
    """The clock of the dispatcher and the engine: no request expires unless a test moves it."""
    return Clock()


@pytest.fixture
def dispatcher(library: Florence2, runner: FakeRunner, gauges: Gauges, clock: Clock) -> Iterator[Dispatcher]:
    """A dispatcher with an engine that decodes one request at a time and lets four wait."""
    limits = EngineConfig(max_batch_size=1, max_queue=MAX_QUEUE)
    engine = Engine(runner, limits, observer=gauges, clock=clock)
    pipeline = library.pipeline
    made = Dispatcher(pipeline, engine, ThreadReaders(input_size(library)), gauges, clock=clock)
    yield made
    runner.gate.set()
    made.close(drain_s=PATIENCE_S)


@pytest.fixture
def slow(picture: Path) -> Iterator[SlowPicture]:
    """`picture`, whose bytes no reader gets before the test releases them."""
    made = SlowPicture(picture.read_bytes())
    yield made
    made.release.set()


@pytest.fixture
def model() -> Iterator[FakeModel]:
    """A fake model, for modules that test the code in front of a model."""
    fake = FakeModel()
    yield fake
    fake.close()


@pytest.fixture
def app(model: FakeModel) -> Starlette:
    """The v2 routes in front of `model`."""
    inference = Inference(PATIENCE_S)
    inference.model = model
    return V2App(ModelRepository([inference]), 10_000_000)


@pytest.fixture(scope="session")
def shared_model() -> FakeModel:
    """The model of the one service that a process can have: BentoML registers its metrics once per
    process."""
    return FakeModel()


@pytest.fixture(scope="session")
def web() -> FakeWeb:
    """The fake hosts that the one service can reach."""
    return FakeWeb()


@pytest.fixture(scope="session")
def shared_client(shared_model: FakeModel, web: FakeWeb) -> Iterator[TestClient]:
    """An HTTP client of the one service."""
    from florence.server import service

    settings = Settings(max_body_bytes=200_000, grpc_port=0)
    built = service.build_service(
        settings, 0, lambda _settings, _device, _observer: shared_model, fetcher=web.fetcher()
    )
    with TestClient(built.to_asgi(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def served(shared_model: FakeModel) -> FakeModel:
    """The model of the one service, reset to its first state."""
    shared_model.calls.clear()
    shared_model.error = None
    shared_model.own = []
    return shared_model


@pytest.fixture
def client(shared_client: TestClient, served: FakeModel) -> TestClient:
    """An HTTP client of the one service, whose model is `served`."""
    return shared_client


@pytest.fixture(scope="session")
def forks() -> Iterator[Forker]:
    """Runs programs in forks of a process that has imported torch and transformers; see `forked`."""
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
    """Chromium, for one module, since Playwright's loop runs in this thread until it ends."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def florence(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a `florence` command line; return its exit status, stdout and stderr."""

    def ran(*argv: object) -> tuple[int, str, str]:
        try:
            status = main([str(part) for part in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ran
