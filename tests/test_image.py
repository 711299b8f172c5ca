"""The Bento's container image, built from its generated Dockerfile and run: `make image-check`.

OCI names a folder with build.sh and run.sh, which replace a Docker engine; FLORENCE_TEST_IMAGE names a
finished image, built from a Bento with the packed checkpoint `packed`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from bentos import DEMO, build, export
from containers import OTHER_UID, Container, Docker, Engine, Scripts
from manifests import health_command
from seed import run_program, seed_program
from serving import ROOT, STOP_S, free_port
from triton_client import ask_triton
from waiting import PATIENCE_S

from florence.bento.image import UID
from florence.client import Client

pytestmark = pytest.mark.image

TAG = "florence2:image-check"
PICTURE = ROOT / "data" / "scene_02.png"
PACKED = "packed"  # a copy of the demo checkpoint by another name, packed into the image
IN_FLIGHT = 24

log = logging.getLogger("image-check")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The container engine: Docker, or the scripts in the folder that OCI names."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines would hide the figures
    return Scripts(Path(os.environ["OCI"])) if os.environ.get("OCI") else Docker()


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tag of the image of a Bento with packed weights."""
    if given := os.environ.get("FLORENCE_TEST_IMAGE"):
        return given
    folder = tmp_path_factory.mktemp("image")
    shutil.copytree(DEMO, folder / PACKED)
    bento = build(folder / "home", FLORENCE_MODEL=str(folder / PACKED))
    export(bento, folder / "bento")
    started = time.monotonic()
    engine.build(folder / "bento", TAG)
    log.info("built in %.0f s", time.monotonic() - started)
    return TAG


@pytest.fixture(scope="module")
def grpc_port() -> int:
    """A free port for gRPC."""
    return free_port()


@pytest.fixture(scope="module")
def container(engine: Engine, image: str, grpc_port: int) -> Iterator[Container]:
    """A container that runs the image and is ready."""
    grpc = {"FLORENCE_GRPC_PORT": str(grpc_port), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    with engine.running(image, **grpc) as started:
        started.wait_ready()
        log.info("image of %.2f GB", engine.size(image) / 1e9)
        log.info("ready after %.1f s", time.monotonic() - started.started_at)
        yield started


def caption(container: Container) -> dict[str, object]:
    """The reply to a caption request."""
    reply = httpx.post(f"{container.url}/caption", files={"image": PICTURE.read_bytes()}, timeout=60)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_the_packed_checkpoint_is_served_when_no_other_is_named(container: Container) -> None:
    """Without FLORENCE_MODEL and without a hub the packed checkpoint is served, and the answer names it."""
    assert caption(container)["checkpoint"] == PACKED


def test_the_service_is_not_root(container: Container) -> None:
    """The service runs as the image's own user."""
    assert container.service().uids().effective == UID


def test_the_seeds_programs_run_against_it(container: Container, shared: Path, tmp_path: Path) -> None:
    """The replaced deployment's client programs work with only address and path changed."""
    one = seed_program(shared, 0, container, **{"/path/to/your/image.png": str(PICTURE)})
    assert re.fullmatch(r"\{'<CAPTION>': '.+'\}\n", run_program(one))
    pictures = sorted((ROOT / "data").glob("scene_0*"))
    for picture in pictures:
        shutil.copy(picture, tmp_path)
    many = seed_program(shared, 1, container, **{"/path/to/image/directory/": str(tmp_path)})
    results = json.loads(run_program(many + "\nprint(json.dumps(results))"))
    assert set(results) == {str(tmp_path / picture.name) for picture in pictures}
    assert all(set(answer) == {"<CAPTION>"} for answer in results.values())


def test_the_typed_client_works_with_it(container: Container) -> None:
    """The typed client gets a detection with labels."""
    with Client(container.url) as client:
        found = client.object_detection(PICTURE).result.detections
    assert {detection.label for detection in found} == {"circle", "heart", "diamond", "triangle"}


def test_tritons_client_works_with_it(container: Container, grpc_port: int) -> None:
    """Triton's client gets its answer on the gRPC port."""
    assert set(ask_triton(grpc_port, PICTURE.read_bytes(), b"<OD>")) == {"<OD>"}


def test_sigterm_answers_what_came_and_ends(engine: Engine, image: str) -> None:
    """After SIGTERM all requests in flight get their answers; then the container ends with status 0."""
    with engine.running(image) as container, ThreadPoolExecutor(IN_FLIGHT) as pool:
        container.wait_ready()
        caption(container)
        form = {"num_beams": "8", "min_new_tokens": "200", "max_new_tokens": "400"}

        def slow(_: int) -> int:
            files = {"image": PICTURE.read_bytes()}
            return httpx.post(f"{container.url}/ocr", files=files, data=form, timeout=120).status_code

        replies = [pool.submit(slow, index) for index in range(IN_FLIGHT)]
        wait_in_flight(container, IN_FLIGHT)
        container.terminate()
        assert [reply.result() for reply in replies] == [200] * IN_FLIGHT
        assert container.wait() == 0


def test_a_worker_that_dies_ends_the_container(engine: Engine, image: str) -> None:
    """If the worker dies, the container ends with a status other than 0, so that the orchestrator restarts
    it."""
    with engine.running(image) as container:
        container.wait_ready()
        workers = [child for child in container.service().children() if "--worker-id" in child.cmdline()]
        assert len(workers) == 1
        workers[0].kill()
        assert container.wait() != 0


def test_another_user_on_a_root_that_cannot_be_written_is_enough(engine: Engine, image: str) -> None:
    """With a read-only root, only /tmp writable and a user without an entry in /etc/passwd, the service
    becomes ready and answers."""
    with engine.running(image, confined=True, FLORENCE_MODEL="demo") as container:
        container.wait_ready()
        log.info("read-only, as another user: ready after %.1f s", time.monotonic() - container.started_at)
        assert container.service().uids().effective == OTHER_UID
        assert caption(container)["checkpoint"] == "demo"


def test_the_health_check_of_the_compose_file_succeeds_when_ready(container: Container) -> None:
    """The Compose file's health command gives 0 for a ready service and 1 where nothing listens."""
    for url, status in ((container.url, 0), (f"http://127.0.0.1:{free_port()}", 1)):
        command = health_command(url)
        assert (
            subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False).returncode == status
        )


def wait_in_flight(container: Container, count: int) -> None:
    """Wait until BentoML's own metric shows `count` requests in progress."""
    end = time.monotonic() + STOP_S
    pattern = re.compile(r'bentoml_service_request_in_progress\{endpoint="/ocr".*\} (\S+)')
    while True:
        found = pattern.search(httpx.get(f"{container.url}/metrics").text)
        if found and float(found[1]) >= count:
            return
        assert time.monotonic() < end, found
        time.sleep(0.02)
