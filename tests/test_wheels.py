"""Both distributions, built and installed: their files, the client alone, and the service."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import PathDistribution, version
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from serving import ROOT, Server, free_port

from florence import __version__

pytestmark = pytest.mark.slow

CLIENT_MB, PIP_MB = 150, 17  # a fresh environment, and pip in it
OLDEST = (
    "pillow==10.1.0",
    "pydantic==2.6.0",
    "httpx==0.25.0",
    "tqdm==4.60.0",
)  # the lower bounds that it declares
PICTURE = ROOT / "data" / "scene_02.png"
CLIENT_REFUSES = {
    "serve": "this needs the package florence2-server",
    "info": "this needs the package florence2-server",
    "evaluate captions --images x --url http://x": "measuring answers needs pycocotools",
}
"""Commands that the client alone can't carry out, and the beginning of the error."""

CLIENT_PROGRAM = """
import os, sys
from PIL import Image
from florence import parse_answer, read_answers
from florence.client import Client, Unreachable
from florence.errors import FlorenceError
from florence.types.results import Detections
found = parse_answer("<OD>", "star<loc_100><loc_100><loc_500><loc_500>", image_size=(100, 100))
assert isinstance(found.result, Detections)
assert found.result.draw(sys.argv[1]).size == Image.open(sys.argv[1]).size
assert list(read_answers(os.devnull)) == []
with Client("http://127.0.0.1:9", retries=0) as client:
    try:
        client.object_detection(sys.argv[1])
    except Unreachable as error:
        assert isinstance(error, FlorenceError)
try:
    from florence import Florence2
except ImportError as error:
    assert "florence2-server" in str(error)
assert not {"torch", "numpy", "bentoml"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from the checkout."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.folder / "bin" / argv[0]), *argv[1:]]
        ran = subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=600, check=False
        )
        assert not check or ran.returncode == 0, ran.stdout + ran.stderr
        return ran

    def pip(self, *argv: str) -> None:
        """Run this pip in the environment."""
        python = str(self.folder / "bin" / "python")
        quiet = ["--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "--python", python, *quiet, *argv]
        subprocess.run(command, check=True, timeout=600)


def make_environment(folder: Path) -> Environment:
    """Make a virtual environment without pip."""
    venv.create(folder, with_pip=False)
    return Environment(folder)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels, built as by `make wheels`, by name of the distribution."""
    folder = tmp_path_factory.mktemp("dist")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, *build, ".", "./deploy/client"], cwd=ROOT, check=True, timeout=300)
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


def contents(wheel: Path) -> set[str]:
    """The package's files in a wheel."""
    return {
        name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")
    }


def test_each_file_of_the_package_is_in_one_of_them(wheels: dict[str, Path]) -> None:
    """Each file of the package is in exactly one wheel, so both can be installed together."""
    client, server = contents(wheels["florence2-client"]), contents(wheels["florence2-server"])
    files = [path for path in (ROOT / "florence").rglob("*") if path.is_file()]
    package = {path for path in files if "__pycache__" not in path.parts}
    assert not client & server
    assert client | server == {str(path.relative_to(ROOT)) for path in package}


def test_both_have_the_packages_version(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Both wheels have the package's version, and the service's needs the client's of that version."""
    for name, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(tmp_path / name)
        (info,) = (tmp_path / name).glob("*.dist-info")
        distribution = PathDistribution(info)
        assert distribution.version == __version__
        if name == "florence2-server":
            assert f"florence2-client=={__version__}" in (distribution.requires or [])


def test_what_the_service_needs_is_what_is_tested(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The installed versions are within the declared ranges."""
    for name, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(tmp_path / name)
        (info,) = (tmp_path / name).glob("*.dist-info")
        for requirement in map(Requirement, PathDistribution(info).requires or []):
            own = requirement.name == "florence2-client"
            if not own and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert version(requirement.name) in requirement.specifier, str(requirement)


@pytest.mark.parametrize("options", [(), ("--no-compile", *OLDEST)], ids=["newest", "oldest"])
def test_the_client_alone(wheels: dict[str, Path], tmp_path: Path, options: tuple[str, ...]) -> None:
    """The client alone is small, asks and draws without torch, and names the package for the rest."""
    environment = make_environment(tmp_path / "venv")
    environment.pip("install", str(wheels["florence2-client"]), *options)
    environment.run("python", "-c", CLIENT_PROGRAM, str(PICTURE))
    assert "caption" in environment.run("florence", "run", "--help").stdout
    for command, needed in CLIENT_REFUSES.items():
        refused = environment.run("florence", *command.split(), check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"florence: {needed}")
    size = sum(path.lstat().st_size for path in environment.folder.rglob("*"))
    assert size < (CLIENT_MB - PIP_MB) * 10**6


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with both wheels and this environment's other packages; the last test uninstalls one
    wheel."""
    environment = make_environment(tmp_path_factory.mktemp("venv"))
    environment.pip("install", "--no-deps", *map(str, wheels.values()))
    (packages,) = environment.folder.glob("lib/python*/site-packages")
    (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def test_an_installed_package_serves(environment: Environment) -> None:
    """`florence serve` of the installed package answers outside a checkout."""
    port = free_port()
    log_path = environment.folder / "log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FLORENCE_")}
    variables |= {
        "XDG_CACHE_HOME": str(environment.folder),
        "FLORENCE_GRPC_PORT": "0",
        "OMP_NUM_THREADS": "1",
    }
    variables.pop("PYTHONPATH", None)
    command = [str(environment.folder / "bin" / "florence"), "serve", "--model", "demo", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=environment.folder, env=variables, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", log_path, grpc_port=0)
    try:
        server.wait_ready()
        reply = httpx.post(f"{server.url}/caption", files={"image": PICTURE.read_bytes()}, timeout=60)
        assert reply.json()["result"]["text"]
        server.terminate()
        server.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_client_stays_when_the_service_goes(environment: Environment) -> None:
    """Uninstalling the service leaves the client's files complete."""
    where = environment.run("python", "-c", "import florence.runtime as r; print(r.__file__)").stdout
    assert Path(where.strip()).is_relative_to(environment.folder)
    environment.pip("uninstall", "--yes", "florence2-server")
    environment.run("python", "-c", CLIENT_PROGRAM, str(PICTURE))
