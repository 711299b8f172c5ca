"""The JavaScript example, opened in Chromium from another origin than the service's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from browser import PATIENCE_MS
from PIL import Image
from playwright.sync_api import Browser, expect
from serving import ROOT, Server, serving_fake

pytestmark = pytest.mark.system

SIZE = (400, 300)


class QuietFiles(SimpleHTTPRequestHandler):
    """A server of a folder's files that writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
        return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The origin of the pages in docs/."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(ROOT / "docs"))) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def service(site: str) -> Iterator[Server]:
    """A service that lets that origin's pages call it; its model finds one box."""
    with serving_fake(FLORENCE_CORS_ORIGINS=site) as server:
        server.wait_ready()
        yield server


def test_a_form_is_posted_and_the_boxes_are_drawn(browser: Browser, site: str, service: Server) -> None:
    """The page shows the answer in words and its box in red on the picture, and it shows an error."""
    file = BytesIO()
    Image.new("RGB", SIZE, "green").save(file, "PNG")
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    try:
        page.goto(f"{site}/boxes.html?service={service.url}")
        page.set_input_files("input", {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
        page.click("button")
        expect(page.get_by_role("status")).to_have_text("fake 0.50")
        drawn = page.evaluate(
            "() => { const c = document.querySelector('canvas'); const pixel = (x, y) => "
            "[...c.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]; "
            "return [c.width, c.height, pixel(1, 3), pixel(200, 200)] }"
        )
        assert drawn[:2] == list(SIZE)
        assert drawn[2][0] > drawn[2][1]  # the box's left side is red on green
        assert drawn[3] == [0, 128, 0]
        page.set_input_files("input", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.click("button")
        expect(page.get_by_role("status")).to_contain_text("PNG")
    finally:
        page.close()
