"""Images and containers for `make image-check`, by a Docker engine or by a folder with two scripts.

The folder's `build.sh BENTO_DIR TAG` makes an image, and `run.sh TAG NAME=VALUE... serve --port N` runs its
entrypoint in the host's network, both with buildah, where no Docker engine runs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from serving import STOP_S, Server, free_port

ENTRYPOINT = "/home/bentoml/bento/env/docker/entrypoint.sh"
SERVE = "/app/.venv/bin/bentoml"
OTHER_UID = 12345

# Runs a command in the image's root, read-only and as another user, since buildah's
# chroot isolation has options for neither. Arguments: the image, the user, then the command.
_CONFINED = """
set -euo pipefail
image=$1 user=$2; shift 2
container=$(buildah from --pull-never "$image")
trap 'buildah umount "$container" >/dev/null; buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
mapfile -t variables < <(
  buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | sed '/^$/d')
unshare --mount bash -c '
  root=$1 user=$2; shift 2
  touch "$root/etc/hosts"
  mount --bind "$root" "$root" && mount --bind /etc/hosts "$root/etc/hosts"
  mount -o remount,bind,ro "$root" && mount -t tmpfs tmpfs "$root/tmp"
  mount --rbind /dev "$root/dev" && mount --rbind /proc "$root/proc"
  exec chroot --userspec="$user:$user" "$root" env -i "$@"
' bash "$root" "$user" "${variables[@]}" "$@"
"""


@dataclass
class Container(Server):
    """A running container. started_at: the monotonic time at which its command was started."""

    name: str
    started_at: float

    def service(self) -> psutil.Process:
        """The container's `bentoml serve` process, as the host sees it."""
        if self.name:
            asked = ["docker", "inspect", "--format", "{{.State.Pid}}", self.name]
            return psutil.Process(int(subprocess.check_output(asked, text=True)))
        (found,) = (
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if process.cmdline()[1:3] == [SERVE, "serve"]
        )
        return found

    def terminate(self) -> None:
        """Send SIGTERM to the service, as an engine does to stop a container."""
        self.service().terminate()


class Engine(ABC):
    """Build an image of an exported Bento, and run it."""

    @abstractmethod
    def build(self, bento: Path, tag: str) -> None:
        """Build an image with this tag from the Bento's own Dockerfile."""

    @abstractmethod
    def size(self, tag: str) -> float:
        """The size of the image in bytes."""

    @abstractmethod
    def command(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        """The command that runs the service in the image."""

    @abstractmethod
    def confined(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        """The command that runs the service as OTHER_UID, with a read-only root and an empty /tmp."""

    named = True

    @contextlib.contextmanager
    def running(self, tag: str, *, confined: bool = False, **environment: str) -> Iterator[Container]:
        """Run a container that serves on a free port, without access to a hub; stop it at the end if it still
        runs."""
        port = free_port()
        variables = {"HF_HUB_OFFLINE": "1", "FLORENCE_GRPC_PORT": "0", **environment}
        name = f"florence-{uuid.uuid4().hex[:8]}"
        make = self.confined if confined else self.command
        command = make(tag, name, variables, ["serve", "--host", "127.0.0.1", "--port", str(port)])
        with tempfile.TemporaryDirectory(prefix="florence-container-") as folder:
            log_path = Path(folder) / "container.log"
            with log_path.open("wb") as log:
                started_at = time.monotonic()
                process = subprocess.Popen(command, stdout=log, stderr=log)
            url = f"http://127.0.0.1:{port}"
            container = Container(process, url, log_path, name if self.named else "", started_at)
            try:
                yield container
            finally:
                if process.poll() is None:
                    with contextlib.suppress(psutil.Error, ValueError, subprocess.CalledProcessError):
                        container.terminate()
                    process.wait(STOP_S)


class Docker(Engine):
    """A Docker engine on this machine."""

    def build(self, bento: Path, tag: str) -> None:
        dockerfile = bento / "env" / "docker" / "Dockerfile"
        subprocess.run(["docker", "build", "--tag", tag, "--file", str(dockerfile), str(bento)], check=True)

    def size(self, tag: str) -> float:
        asked = ["docker", "image", "inspect", "--format", "{{.Size}}", tag]
        return float(subprocess.check_output(asked, text=True))

    def command(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        return [*self._run(name, variables), tag, *serve]

    def confined(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        limits = ["--read-only", "--tmpfs", "/tmp", "--user", f"{OTHER_UID}:{OTHER_UID}", "--cap-drop", "ALL"]
        return [*self._run(name, variables), *limits, tag, *serve]

    @staticmethod
    def _run(name: str, variables: dict[str, str]) -> list[str]:
        """The command that runs a container with these variables."""
        envs = [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
        return ["docker", "run", "--rm", "--name", name, "--network", "host", *envs]


@dataclass
class Scripts(Engine):
    """A folder with `build.sh` and `run.sh`."""

    folder: Path
    named = False

    def build(self, bento: Path, tag: str) -> None:
        subprocess.run([str(self.folder / "build.sh"), str(bento), tag], check=True)

    def size(self, tag: str) -> float:
        found = json.loads(subprocess.check_output(["buildah", "images", "--json", tag], text=True))
        number, unit = str(found[0]["size"]).split()
        return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]

    def command(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        return [str(self.folder / "run.sh"), tag, *_words(variables), *serve]

    def confined(self, tag: str, name: str, variables: dict[str, str], serve: list[str]) -> list[str]:
        words = [tag, str(OTHER_UID), *_words(variables), ENTRYPOINT, *serve]
        return ["bash", "-c", _CONFINED, "bash", *words]


def _words(variables: dict[str, str]) -> list[str]:
    """The variables as NAME=VALUE words."""
    return [f"{key}={value}" for key, value in variables.items()]
