"""`image_url` with a real service, a real resolver and a real host on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fake_web import PICTURE
from serving import serving_fake

pytestmark = pytest.mark.slow


class Pictures(BaseHTTPRequestHandler):
    """A host with a picture at every path except /none."""

    def do_GET(self) -> None:
        """Reply with the picture, or 404 at /none."""
        found = self.path != "/none"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(PICTURE if found else b"secret")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a host with pictures."""
    with HTTPServer(("127.0.0.1", 0), Pictures) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield host.server_address[1]
        host.shutdown()


def test_a_service_fetches_what_its_settings_allow(port: int) -> None:
    """A name allowed with its network is fetched; another name of the host and a path without a picture
    are refused; the environment's proxy is not used. (`test_server_fetching_allowed.py` has a name without
    its network.)"""
    hosts = f"localhost:{port}"
    settings = {"FLORENCE_IMAGE_HOSTS": hosts, "FLORENCE_IMAGE_NETWORKS": "127.0.0.0/8,::1/128"}
    with serving_fake(**settings, HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9") as server:
        server.wait_ready()

        def asked(url: str) -> int:
            with httpx.Client(trust_env=False, timeout=60) as http:
                return http.post(f"{server.url}/caption", json={"image_url": url}).status_code

        assert asked(f"http://localhost:{port}/a.png") == 200
        assert asked(f"http://localhost:{port}/none") == 422
        assert asked(f"http://127.0.0.1:{port}/a.png") == 400
        assert asked("http://localhost/a.png") == 400
