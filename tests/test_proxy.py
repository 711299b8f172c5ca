"""The proxy of deploy/: a real nginx in front of a service, with TLS, limits, and known paths only."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import requests
from programs import program, self_signed
from serving import ROOT, STOP_S, Server, free_port, serving_fake
from tritonclient.grpc import service_pb2, service_pb2_grpc
from v2 import INFER, picture
from v2 import request as infer_request
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.system
CONFIGURATION = ROOT / "deploy" / "nginx" / "florence.conf"
MOST = 1_000_000


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its port, its certificate, and the service behind it."""

    port: int
    certificate: Path
    server: Server

    @property
    def url(self) -> str:
        """The proxy's URL."""
        return f"https://localhost:{self.port}"

    def ask(self, method: str, path: str, **sent: object) -> requests.Response:
        """Send a request through the proxy."""
        return requests.request(method, self.url + path, verify=str(self.certificate), timeout=60, **sent)  # type: ignore[arg-type]

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection to the proxy."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        return context.wrap_socket(plain, server_hostname="localhost")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx with the repository's configuration; addresses, certificate and time limits are changed."""
    nginx = program("nginx", "nginx-light", "NGINX_PROGRAM")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, _ = self_signed(folder)
    port, grpc_port = free_port(), free_port()
    with serving_fake(FLORENCE_GRPC_PORT=str(grpc_port)) as server:
        changes = {
            "127.0.0.1:8000": server.url.removeprefix("http://"),
            "127.0.0.1:8001": f"127.0.0.1:{grpc_port}",
            "listen 443 ": f"listen 127.0.0.1:{port} ",
            "/etc/florence/": f"{folder}/",
            "/run/nginx.pid": f"{folder}/nginx.pid",
            "client_max_body_size 64m": f"client_max_body_size {MOST}",
            "client_body_timeout 30s": "client_body_timeout 10s",  # as for heads
            "\nhttp {": "\nhttp {\n" + temporary_paths(folder),
        }
        text = CONFIGURATION.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        server.wait_ready()
        process = subprocess.Popen(
            [nginx, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
        )
        try:
            made = Proxy(port, certificate, server)
            wait_until(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None
            yield made
        finally:
            process.terminate()
            process.wait(STOP_S)


def temporary_paths(folder: Path) -> str:
    """The directives for folders that nginx may write without root."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)


def listens(port: int) -> bool:
    """Return whether a server listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_service_answers_through_it(proxy: Proxy) -> None:
    """The typed endpoints, v2 and the pages are answered, with the client's request id."""
    headers = {"X-Request-Id": "mine"}
    reply = proxy.ask("POST", "/caption", files={"image": picture()}, headers=headers)
    assert (reply.status_code, reply.headers["X-Request-Id"]) == (200, "mine")
    assert proxy.ask("POST", INFER, json=infer_request()).status_code == 200
    for path in ("/", "/ui", "/docs", "/pages/main.js", "/pages/coffee.jpg"):
        assert proxy.ask("GET", path, headers={"accept": "text/html"}).status_code == 200, path
    for path in ("/info", "/docs.json", "/readyz", "/v2", "/v2/health/ready", "/v2/models/florence2"):
        assert proxy.ask("GET", path).status_code == 200, path


def test_grpc_goes_through_it(proxy: Proxy) -> None:
    """gRPC works on the same port, with TLS."""
    credentials = grpc.ssl_channel_credentials(proxy.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=PATIENCE_S).ready
        assert stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=PATIENCE_S).name == "florence"


@pytest.mark.parametrize(
    "path", ["/metrics", "/schema.json", "/a/b", "/.env", "/v1/x", "/METRICS", "/static/x"]
)
def test_other_paths_do_not(proxy: Proxy, path: str) -> None:
    """Metrics and unknown paths are a 404, and never reach the service."""
    before = len(proxy.server.log)
    reply = proxy.ask("GET", path)
    assert (reply.status_code, reply.json()) == (404, {"error": "Not Found"})
    assert path not in proxy.server.log[before:]


def test_bodies_and_heads_have_limits(proxy: Proxy) -> None:
    """A body over its limit is a 413, a head a 400 and a URL a 414; none reaches the service."""
    before = len(proxy.server.log)
    assert proxy.ask("POST", "/caption", data=b"x" * (MOST + 1)).status_code == 413
    assert proxy.ask("GET", "/info", headers={"X-Long": "x" * 9000}).status_code == 400
    assert proxy.ask("GET", "/info?" + "x" * 9000).status_code == 414
    assert "POST" not in proxy.server.log[before:]


def test_slow_senders_are_given_up(proxy: Proxy) -> None:
    """A head or a body that stops ends the connection, with or without a 408."""
    with proxy.connect() as head, proxy.connect() as body:
        head.sendall(b"POST /caption HTTP/1.1\r\nHost: a\r\n")
        body.sendall(b"POST /caption HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        for connection in (head, body):
            answer = b""
            while more := connection.recv(4096):
                answer += more
            assert not answer or answer.startswith(b"HTTP/1.1 408 ")


def test_old_tls_and_plain_http_are_refused(proxy: Proxy) -> None:
    """TLS 1.1 has no handshake, and a request without TLS is a 400."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    assert requests.get(f"http://localhost:{proxy.port}/info", timeout=60).status_code == 400
