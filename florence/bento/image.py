"""The container image of a Bento: its base, its locked packages, its CPU and its GPU variant.

Both variants install what the lock names and nothing else. The GPU variant takes PyTorch as the package index
has it, with CUDA, and checks the hash of every file. The CPU variant leaves the CUDA packages out and lets uv
take PyTorch's CPU build (UV_TORCH_BACKEND) at the locked version; the lock has no hashes of those files, so
there PyTorch is pinned by its version alone.

The variables that a variant needs are BentoML's `envs`: they become `ENV` lines of the Dockerfile. Knows
nothing about checkpoints.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bentoml

Variant = Literal["cpu", "gpu"]

LOCK = Path(__file__).resolve().parents[2] / "requirements-serve.lock"
BASE_IMAGE = "python:3.11-slim"
PYTHON = "3.11"  # the lock is made for it
UID = 1034  # of the user `bentoml` in BentoML's images; Kubernetes needs the number
_HOME = "/home/bentoml"
_REQUIREMENTS = f"{_HOME}/bento/env/python/requirements.txt"
_INSTALLER = "uv"
_FROM_ANOTHER_BUILD = ("torch", "torchvision")
_CUDA_PREFIXES = ("cuda-", "nvidia-", "triton")
_NOT_CUDA = ("nvidia-ml-py", "tritonclient")  # not CUDA: one counts GPUs, one is a gRPC client

# Triton, PyTorch's compiler of GPU kernels, builds their launchers with a C compiler when the service starts.
_C_COMPILER = (
    "apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev"
    " && rm -rf /var/lib/apt/lists/*"
)

MODELS = "/models"  # the hub's cache (bentofile.yaml: HF_HOME), on which a volume can be mounted
# BentoML makes these folders at each start where they are missing; made here, the root may be read-only.
_HOME_FOLDERS = " ".join(f"{_HOME}/{name}" for name in ("bentos", "models", "envs", "tmp"))


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Arguments of `bentoml.service`. `image`: a `bentoml.images.Image`, or None. `envs`: its environment
    variables, in BentoML's form."""

    image: Any
    envs: list[dict[str, str]]


def image_settings(variant: Variant, lock: Path = LOCK) -> ImageSettings:
    """The image of a variant, with the packages of the file `lock`. Without that file, as outside a checkout,
    there is no image and no variable."""
    if not lock.is_file():
        return ImageSettings(None, [])
    packages = read_lock(lock.read_text(encoding="utf-8"))
    installer = _one_line(packages.pop(_INSTALLER))
    # Without a distribution BentoML installs none of its system packages; the Python packages are wheels.
    image = bentoml.images.Image(
        base_image=BASE_IMAGE, distro="", python_version=PYTHON, lock_python_packages=False
    )
    image.run(f"echo {shlex.quote(installer)} | pip install --no-cache-dir --require-hashes -r /dev/stdin")
    image.python_packages(requirements(packages, variant))
    if variant == "gpu":
        image.run(_C_COMPILER)
    image.run(f"mkdir -p {_HOME_FOLDERS} {MODELS} && chmod 755 {_HOME} && chown {UID}:{UID} {MODELS}")
    return ImageSettings(
        image, [{"name": name, "value": value} for name, value in _variables(variant).items()]
    )


def read_lock(text: str) -> dict[str, str]:
    """Name of a package -> its lines in the lock: the pin, then its hashes. Comments are left out."""
    lines = "\n".join(line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#")
    return {package.partition("==")[0]: package for package in re.split(r"\n(?! )", lines)}


def requirements(packages: dict[str, str], variant: Variant) -> str:
    """The lines of a requirements file that a variant installs."""
    if variant == "gpu":
        return "\n".join(packages.values())
    return "\n".join(
        _pin(lines) if name in _FROM_ANOTHER_BUILD else lines
        for name, lines in packages.items()
        if name in _NOT_CUDA or not name.startswith(_CUDA_PREFIXES)
    )


def _variables(variant: Variant) -> dict[str, str]:
    common = {"UV_NO_CACHE": "1"}  # else the image has every package twice where no cache is mounted
    if variant == "cpu":
        return common | {"UV_TORCH_BACKEND": "cpu", "FLORENCE_DEVICE": "cpu"}
    return common | {
        # BentoML adds a pin of itself without a hash, which uv refuses; as a constraint, the list supplies
        # the hash.
        "UV_REQUIRE_HASHES": "1",
        "UV_CONSTRAINT": _REQUIREMENTS,
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",  # utility: NVML, which counts the GPUs
        # Compiled kernels: a directory that is writable, executable (a tmpfs is often `noexec`), and kept.
        "TRITON_CACHE_DIR": f"{MODELS}/triton",
    }


def _pin(lines: str) -> str:
    return lines.splitlines()[0].removesuffix("\\").rstrip()


def _one_line(lines: str) -> str:
    return " ".join(line.removesuffix("\\").strip() for line in lines.splitlines())
