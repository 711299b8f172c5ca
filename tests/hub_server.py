"""A model hub on 127.0.0.1 with the few routes that `huggingface_hub` calls to download a repository.

It records the requests, and can stop in the middle of a file. Knows nothing about florence.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A repository. `revisions`: name -> files, each with its bytes. A commit is the digest of its files."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        """The commit id of these files."""
        names = json.dumps(
            {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}, sort_keys=True
        )
        return hashlib.sha1(names.encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        """The files of a revision, given by its name or commit id."""
        if revision in self.revisions:
            return self.revisions[revision]
        return next((files for files in self.revisions.values() if self.commit(files) == revision), None)


@dataclass
class Cut:
    """The next `times` downloads of a file end after `after` bytes; with `then_down`, all later
    calls fail."""

    after: int
    times: int = 1
    then_down: bool = False


@dataclass
class HubServer:
    """A server of `repositories` until the `with` block ends. `log`: the (method, path, Range header) of each
    call."""

    repositories: dict[str, Repository]
    cuts: dict[str, Cut] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    down: bool = False

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """The hub's URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self) -> list[str]:
        """The names of the downloaded files, in order."""
        return [
            path.rsplit("/", 1)[1] for method, path, _ in self.log if method == "GET" and "/resolve/" in path
        ]

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of each download of a file."""
        return [wanted for method, path, wanted in self.log if method == "GET" and path.endswith(f"/{name}")]


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    """The files in the form of the hub's tree route."""
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]


class _Handler(BaseHTTPRequestHandler):
    """Answer the hub's routes."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, since `hub.log` has the requests."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer()

    def _answer(self) -> None:
        """Choose the answer by the path."""
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        owner, name, *parts = path.removeprefix("/api/models").lstrip("/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        files = repository.files(parts[1] if len(parts) > 1 else "main") if repository else None
        if self.hub.down:
            self._send(503, b"down for maintenance")
        elif repository is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif parts[:1] == ["resolve"]:
            self._send_file(files, "/".join(parts[2:]), repository.commit(files))
        elif parts[:1] == ["tree"]:
            self._send(200, json.dumps(_tree(files)).encode())
        else:
            siblings = [{"rfilename": file} for file in files]
            info = {"id": f"{owner}/{name}", "sha": repository.commit(files), "siblings": siblings}
            self._send(200, json.dumps(info).encode())

    def _send_file(self, files: dict[str, bytes], name: str, commit: str) -> None:
        """Send a file, from the requested position."""
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name not in files:
            return self._send(404, b"{}", {**headers, "X-Error-Code": "EntryNotFound"})
        data = files[name]
        headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if wanted else 200, data[start:], headers, cut=self.hub.cuts.get(name))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: Cut | None = None
    ) -> None:
        """Send an answer, cut off if a `Cut` applies."""
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None and cut.times > 0:
            cut.times -= 1
            self.hub.down = cut.then_down
            body = body[: cut.after]
            self.close_connection = True
        self.wfile.write(body)
