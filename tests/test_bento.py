"""The built Bento: its content, served to every kind of client, and with packed weights."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest
import requests
import v2
from bentos import DEMO, Bento, build, run_build
from hub_server import HubServer, Repository
from serving import ROOT, Server, free_port
from triton_client import ask_triton

from florence.bento.image import UID
from florence.checkpoint.files import checkpoint_files
from florence.client import Client
from florence.types.results import Detections

pytestmark = pytest.mark.slow

PICTURE = ROOT / "data" / "scene_02.png"
NAME = "Someone/Small-Florence"


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Bento:
    """A Bento built without settings, package index and network."""
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return build(tmp_path_factory.mktemp("bentoml"), PIP_NO_INDEX="1", **nowhere)


@pytest.fixture(scope="module")
def grpc_port() -> int:
    """The port of gRPC."""
    return free_port()


@pytest.fixture(scope="module")
def server(grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Bento for the CPU whose build downloads its weights once, served without a hub."""
    files = {file.name: file.read_bytes() for file in checkpoint_files(DEMO)}
    repository = Repository({"main": files})
    folder = tmp_path_factory.mktemp("packed")
    with HubServer({NAME: repository}) as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
        bento = build(folder / "home", FLORENCE_DEVICE="cpu", FLORENCE_MODEL=NAME, **online)
        assert sorted(hub.downloads()) == sorted(files)
    shutil.rmtree(folder / "hub")
    check_cpu_image(bento)
    grpc = {"FLORENCE_GRPC_PORT": str(grpc_port), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    with bento.serving(folder, HF_HOME=str(folder / "empty"), **grpc) as started:
        assert checkpoint_of(started) == f"{NAME}@{repository.commit(files)[:12]}"
        yield started


@pytest.fixture(scope="module")
def caption(server: Server) -> str:
    """The caption from the typed endpoint; every other client must get the same."""
    reply = httpx.post(f"{server.url}/caption", files={"image": PICTURE.read_bytes()}, timeout=60)
    return str(reply.json()["result"]["text"])


def test_it_holds_code_lock_and_demo_checkpoint_without_trainer_tests_and_data(bento: Bento) -> None:
    """The Bento contains only the files that serving reads."""
    source = bento.path / "src"
    assert (source / "florence/demo/checkpoint/model.safetensors").is_file()
    for page in (
        "ui.html",
        "ui/main.js",
        "api/swagger-ui-bundle.js",
        "api/swagger-ui-LICENSE.txt",
        "samples/coffee.jpg",
    ):
        assert (source / "florence/server/pages" / page).is_file()
    assert (source / "florence/server/typed/examples.json").is_file()
    assert {path.name for path in source.iterdir() if path.is_dir()} == {"florence"}
    assert {path.name for path in source.glob("*.py")} == {"service.py"}
    assert {path.name for path in (source / "florence/demo").iterdir()} == {"checkpoint"}
    assert not list(bento.home.glob("models/*"))


def test_the_image_is_the_one_with_cuda_and_runs_as_its_own_user(bento: Bento) -> None:
    """The default image has CUDA, and it runs as the user id of the Kubernetes example."""
    dockerfile, packages = image_files(bento)
    assert f"ARG BENTO_USER_UID={UID}\n" in dockerfile
    assert "\nUSER bentoml\n" in dockerfile
    assert "UV_TORCH_BACKEND" not in dockerfile
    assert "\nnvidia-cudnn" in packages


def test_service_library_and_demo_checkpoint_are_the_bentos_own(bento: Bento, tmp_path: Path) -> None:
    """Loading the Bento imports nothing from the source tree, and its demo checkpoint is identical."""
    program = (
        "import bentoml, sys; bentoml.load(sys.argv[1]);"
        "from florence.checkpoint.hub import resolve_checkpoint; print(resolve_checkpoint('demo').directory)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(bento.path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "BENTOML_HOME": str(bento.home)},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    demo = Path(ran.stdout.splitlines()[-1])
    assert demo.is_relative_to(bento.path / "src")
    for file in checkpoint_files(DEMO):
        assert (demo / file.name).read_bytes() == file.read_bytes()


def test_a_v2_client_on_requests_is_answered(server: Server, caption: str) -> None:
    """The JSON body that a Triton deployment of Florence-2 accepts gets the same caption."""
    body = v2.request(images=[v2.encoded(PICTURE.read_bytes())])
    reply = requests.post(server.url + v2.INFER, json=body, timeout=60)
    assert json.loads(reply.json()["outputs"][0]["data"][0]) == {"<CAPTION>": caption}


def test_tritons_own_client_is_answered(server: Server, grpc_port: int, caption: str) -> None:
    """tritonclient over gRPC gets the same caption for the picture's bytes."""
    assert ask_triton(grpc_port, PICTURE.read_bytes()) == {"<CAPTION>": caption}


def test_the_typed_client_is_answered(server: Server, caption: str) -> None:
    """The typed client gets a text and boxes with their types."""
    with Client(server.url) as client:
        assert client.caption(PICTURE).result.text == caption
        found = client.object_detection(PICTURE).result
    assert isinstance(found, Detections)
    assert {detection.label for detection in found.detections} == {"circle", "heart", "diamond", "triangle"}


def test_bentomls_clients_are_answered(server: Server, caption: str) -> None:
    """BentoML's clients, which read the schema from the server, get the same caption."""
    with bentoml.SyncHTTPClient(server.url) as client:
        assert client.caption(image=PICTURE)["result"]["text"] == caption

    async def call() -> str:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            return str((await client.caption(image=PICTURE))["result"]["text"])

    assert asyncio.run(call()) == caption


def test_an_argument_and_the_weights_of_a_directory_are_built_in(tmp_path: Path) -> None:
    """`--arg device=cpu` chooses the image without CUDA, and overrides the environment when the Bento is
    served.

    The directory is not needed after the build, and answers name the packed checkpoint.
    """
    original = tmp_path / "my-finetune"
    shutil.copytree(DEMO, original)
    bento = build(tmp_path / "home", ["device=cpu"], FLORENCE_MODEL=str(original))
    check_cpu_image(bento)
    shutil.rmtree(original)
    with bento.serving(tmp_path, FLORENCE_DEVICE="cuda:3") as server:
        assert checkpoint_of(server) == "my-finetune"


def test_a_checkpoint_that_is_not_there_ends_the_build_with_what_to_do(tmp_path: Path) -> None:
    """A missing checkpoint ends the build with one sentence, without a traceback and without a Bento."""
    built = run_build(tmp_path, FLORENCE_MODEL="/nowhere/at/all")
    assert built.returncode != 0
    assert "there is no checkpoint '/nowhere/at/all'" in built.stderr
    assert "Traceback" not in built.stderr
    assert not list(tmp_path.glob("bentos/*/*/bento.yaml"))


def image_files(bento: Bento) -> tuple[str, str]:
    """The generated Dockerfile, and the packages that it installs."""
    env = bento.path / "env"
    return (env / "docker" / "Dockerfile").read_text(), (env / "python" / "requirements.txt").read_text()


def check_cpu_image(bento: Bento) -> None:
    """Check that the image has no CUDA and that the CPU is its default device."""
    dockerfile, packages = image_files(bento)
    assert "ARG UV_TORCH_BACKEND=cpu\n" in dockerfile
    assert "ARG FLORENCE_DEVICE=cpu\n" in dockerfile
    assert "\nnvidia-cudnn" not in packages
    assert "\ntorch==" in packages


def checkpoint_of(server: Server) -> str:
    """The name of the checkpoint that answers a request."""
    server.wait_ready()
    reply = httpx.post(f"{server.url}/caption", files={"image": PICTURE.read_bytes()}, timeout=60)
    return str(reply.json()["checkpoint"])
