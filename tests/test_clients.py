"""Unchanged clients of other projects, each in an environment of its own, with a running service.

`tests/clients/` has for each a list of packages with hashes and a program that asks for a caption in every
way that the client offers. Environments are kept under `build/clients`, by their list.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from programs import absent, program
from serving import ROOT, Server
from tritonclient.grpc import service_pb2

CLIENTS: Final = ROOT / "tests" / "clients"
KEPT: Final = ROOT / "build" / "clients"
PICTURE: Final = ROOT / "data" / "scene_02.png"
INSTALL_S: Final = 900.0  # enough for some 300 MB on a slow connection
ASK_S: Final = 180.0
PYTHON: Final = ("kserve", "mlserver", "pytriton", "tritony")

Install = Callable[[Path, Path], None]
"""A function that installs the packages listed in a folder of `CLIENTS` into a new folder."""


def install_python(listed: Path, into: Path) -> None:
    """Make a virtual environment. Packages run no code of their own while they are installed."""
    subprocess.run([sys.executable, "-m", "venv", into], check=True, capture_output=True)
    pip = [into / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    exactly = ["--require-hashes", "--only-binary", ":all:", "--retries", "2"]
    lock = listed / "requirements.lock"
    subprocess.run([*pip, *exactly, "-r", lock], check=True, capture_output=True, timeout=INSTALL_S)


def install_node(listed: Path, into: Path) -> None:
    """Install the packages, and put the program beside them, where Node finds them."""
    into.mkdir(parents=True)
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copy(listed / name, into / name)
    quietly = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries", "2"]
    npm = program("npm", "npm", "NPM_PROGRAM")
    subprocess.run([npm, "ci", *quietly], cwd=into, check=True, capture_output=True, timeout=INSTALL_S)


def environment(name: str, install: Install) -> Path:
    """The client's environment; it is made if its list has none yet."""
    listed = CLIENTS / name
    said = b"".join(path.read_bytes() for path in sorted(listed.iterdir()) if path.suffix != ".py")
    kept = KEPT / f"{name}-{hashlib.sha256(said + sys.version.encode()).hexdigest()[:12]}"
    done = kept / "installed"
    if not done.exists():
        shutil.rmtree(kept, ignore_errors=True)
        install(listed, kept)
        done.touch()
    return kept


@pytest.fixture(scope="module")
def environments() -> Iterator[Mapping[str, Future[Path]]]:
    """All environments, installed in parallel, since that takes longer than the tests."""
    kinds: dict[str, Install] = dict.fromkeys(PYTHON, install_python) | {"node": install_node}
    if shutil.which("npm") is None:
        del kinds["node"]
    with ThreadPoolExecutor(len(kinds)) as pool:
        yield {name: pool.submit(environment, name, install) for name, install in kinds.items()}


@pytest.fixture(scope="module")
def caption(demo_server: Server) -> str:
    """The caption that every client must get."""
    reply = httpx.post(demo_server.url + "/caption", files={"image": PICTURE.read_bytes()}, timeout=ASK_S)
    text = str(reply.json()["result"]["text"])
    assert len(text) > 10
    return text


def installed(environments: Mapping[str, Future[Path]], name: str) -> Path:
    """The client's environment; the test is skipped if its packages can't be fetched."""
    try:
        return environments[name].result()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return absent(f"the packages of {name} can't be installed: {said[-1] if said else error}")


def seen(command: list[str | Path], server: Server) -> dict[str, object]:
    """The output of a client's program: for each action, its caption, or whether the result was correct."""
    addresses = [server.url, f"127.0.0.1:{server.grpc_port}", PICTURE]
    program, *more = command
    ran = subprocess.run([program, more[0], *addresses, *more[1:]], capture_output=True, timeout=ASK_S)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-4000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def wrong(answers: Mapping[str, object], caption: str) -> dict[str, object]:
    """The answers that are neither the caption nor true."""
    return {what: value for what, value in answers.items() if value != caption and value is not True}


@pytest.mark.system
@pytest.mark.parametrize("name", PYTHON)
def test_a_python_client_gets_the_caption(
    environments: Mapping[str, Future[Path]], demo_server: Server, caption: str, name: str
) -> None:
    """A Python client gets the caption in every way that it offers, and its other requests get the answers
    that it expects."""
    python = installed(environments, name) / "bin" / "python"
    answers = seen([python, CLIENTS / name / "ask.py"], demo_server)
    assert len(answers) >= 3
    assert wrong(answers, caption) == {}


@pytest.mark.system
def test_node_gets_the_caption(
    environments: Mapping[str, Future[Path]], demo_server: Server, caption: str, tmp_path: Path
) -> None:
    """Node gets the caption by its own fetch, with forms, JSON and an event stream, and by grpc-js."""
    node = program("node", "nodejs", "NODE_PROGRAM")
    program("npm", "npm", "NPM_PROGRAM")
    folder = installed(environments, "node")
    descriptors = tmp_path / "v2.pb"
    descriptors.write_bytes(described())
    answers = seen([node, folder / "ask.mjs", descriptors], demo_server)
    assert len(answers) == 9
    assert wrong(answers, caption) == {}


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "outermost"),
    [("serving-runtime", "V1alpha1ServingRuntime"), ("inference-service", "V1beta1InferenceService")],
)
def test_kserve_s_types_have_the_fields_of_the_trimmed_schemas(
    environments: Mapping[str, Future[Path]], name: str, outermost: str
) -> None:
    """Each field of `tests/schemas` exists in KServe's own type, with the same kind."""
    python = installed(environments, "kserve") / "bin" / "python"
    printed = subprocess.run(
        [python, CLIENTS / "kserve" / "fields.py"], capture_output=True, check=True, timeout=ASK_S
    )
    types: dict[str, dict[str, str]] = json.loads(printed.stdout)
    schema = json.loads((ROOT / "tests" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    assert f"KServe {kserve_version()} " in schema["$comment"]
    assert not list(unlike(schema, outermost, types))


def kserve_version() -> str:
    """The version in KServe's list of packages."""
    return (CLIENTS / "kserve" / "requirements.in").read_text(encoding="utf-8").strip().partition("==")[2]


def unlike(schema: Mapping[str, Any], kind: str, types: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """The places where a schema differs from the API's type; Kubernetes' own types are ignored."""
    if kind.startswith("list["):
        if schema.get("type") != "array":
            yield kind
        schema, kind = schema.get("items", {}), kind.removeprefix("list[").removesuffix("]")
    plain = {"str": "string", "int": "integer", "bool": "boolean"}
    if kind in plain and "enum" not in schema and "const" not in schema and schema.get("type") != plain[kind]:
        yield kind
    if kind in types:
        for name, inner in schema["properties"].items():
            if name not in types[kind]:
                yield f"{kind}.{name}"
            else:
                yield from unlike(inner, types[kind][name], types)


def described() -> bytes:
    """The v2 protocol's descriptors, for a client without stubs."""
    made = FileDescriptorSet()
    for module in (service_pb2.model__config__pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(made.file.add())
    return made.SerializeToString()


@pytest.mark.parametrize("path", sorted(CLIENTS.glob("*/*lock*")), ids=lambda path: path.parent.name)
def test_a_lock_has_hashes_and_names_no_place(path: Path) -> None:
    """A lock file has hashes and no addresses."""
    text = path.read_text(encoding="utf-8")
    assert "sha256:" in text or '"integrity": "sha512-' in text
    assert "://" not in text
