"""The image's settings and its lock file: which packages are installed, and that their hashes are checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

from serving import ROOT

from florence.bento.image import LOCK, MODELS, Variant, image_settings, read_lock

WHOLE_LOCK = ROOT / "requirements.lock"
NOT_FOR_SERVING = {"pytest", "hypothesis", "mypy", "ruff", "check-jsonschema", "requests", "mkdocs"}
OWN = {"florence2-client"}  # its code is in the Bento


def installed(variant: Variant) -> dict[str, str]:
    """Package -> its lines in the image's requirements."""
    return read_lock(image_settings(variant).image.python_requirements)


def test_the_lock_pins_and_hashes_each_package_and_names_no_index() -> None:
    """The lock file has only pins with hashes: no options and no addresses."""
    text = LOCK.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
    packages = read_lock(text)
    assert all("--hash=sha256:" in package for package in packages.values())
    assert len(packages) == len([line for line in lines if not line.startswith(" ")])
    assert "://" not in text


def test_serving_runs_on_the_versions_that_are_tested() -> None:
    """The image's pins are a part of the pins that the tests run with."""
    tested = {name: lines.split()[0] for name, lines in read_lock(WHOLE_LOCK.read_text()).items()}
    served = {name: lines.split()[0] for name, lines in read_lock(LOCK.read_text()).items()}
    assert served.items() <= tested.items()


def test_the_lock_has_what_the_package_needs_and_nothing_for_tests() -> None:
    """The lock has all dependencies of both distributions, and none for tests, training or development."""
    projects = [
        tomllib.loads((ROOT / path).read_text(encoding="utf-8"))["project"]
        for path in ("pyproject.toml", "deploy/client/pyproject.toml")
    ]
    lines = [line for project in projects for line in project["dependencies"]]
    needed = {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-").strip() for line in lines} - OWN
    locked = set(read_lock(LOCK.read_text()))
    assert needed <= locked
    assert not NOT_FOR_SERVING & locked


def test_the_gpu_image_checks_the_hash_of_all_that_it_installs() -> None:
    """uv must refuse packages without hashes, and pip checks the hash of uv itself."""
    settings = image_settings("gpu")
    assert {"name": "UV_REQUIRE_HASHES", "value": "1"} in settings.envs
    assert all("--hash=sha256:" in lines for lines in installed("gpu").values())
    assert {"torch", "triton", "nvidia-cudnn-cu13"} <= set(installed("gpu"))
    (first,) = settings.image.commands
    assert re.fullmatch(
        r"echo 'uv==\S+( --hash=sha256:[0-9a-f]{64})+' \| pip install .*--require-hashes.*", first
    )


def test_the_cpu_image_has_the_same_versions_without_cuda() -> None:
    """The CPU image has no CUDA packages; only PyTorch's pins differ, which lack the hashes of the CUDA
    build."""
    cpu, gpu = installed("cpu"), installed("gpu")
    left_out = set(gpu) - set(cpu)
    assert "triton" in left_out
    assert all(name.startswith(("nvidia-", "cuda-")) for name in left_out - {"triton"})
    assert {"nvidia-ml-py", "tritonclient"} <= set(cpu)
    assert {name for name in cpu if cpu[name] != gpu[name]} == {"torch", "torchvision"}
    assert all(cpu[name] == gpu[name].split()[0] for name in ("torch", "torchvision"))
    assert {"name": "UV_TORCH_BACKEND", "value": "cpu"} in image_settings("cpu").envs


def test_without_the_lock_there_is_no_image(tmp_path: Path) -> None:
    """An installed package, which has no lock file, has no image settings."""
    assert image_settings("gpu", tmp_path / "no.lock").image is None


def test_only_the_gpu_image_has_a_compiler_and_a_place_for_kernels() -> None:
    """Only the GPU image has a compiler, which triton needs for its launcher, and a cache under `/models`,
    which is writable and allows loading libraries."""
    images = {variant: image_settings(variant) for variant in get_args(Variant)}
    commands = {name: [*each.image.commands, *each.image.post_commands] for name, each in images.items()}
    assert not any("apt-get" in command for command in commands["cpu"])
    (install,) = (command for command in commands["gpu"] if "apt-get" in command)
    assert {"gcc", "libc6-dev"} <= set(install.split())
    assert {"name": "TRITON_CACHE_DIR", "value": f"{MODELS}/triton"} in images["gpu"].envs
    assert "TRITON_CACHE_DIR" not in {each["name"] for each in images["cpu"].envs}
