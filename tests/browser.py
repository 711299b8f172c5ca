"""Chromium, driven by Playwright, and a record of a page's requests and errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright
from programs import program
from serving import ROOT

SCREENSHOTS = ROOT / "build" / "screenshots"
"""The folder for screenshots of pages whose tests failed."""
PATIENCE_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium. Without the program the test is skipped, or fails under FLORENCE_CI."""
    path = program("chromium", "chromium", "CHROMIUM_PROGRAM")
    expect.set_options(timeout=PATIENCE_MS)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root can't use the sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page's requests and console messages. allowed: parts of the messages that a test expects."""

    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    def check(self, url: str) -> None:
        """Check that all requests went to this host, and that the console shows only allowed messages."""
        hosts = {urlsplit(each).netloc for each in self.urls if not each.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(url).netloc}
        complaints = [each for each in self.complaints if not any(text in each for text in self.allowed)]
        assert complaints == []

    def asked(self, ending: str) -> int:
        """The number of requests whose path has this ending."""
        return sum(urlsplit(each).path.endswith(ending) for each in self.urls)


@contextmanager
def open_page(
    browser: Browser, url: str, path: str, *, allowed: tuple[str, ...] = (), **options: Any
) -> Iterator[tuple[Page, Seen]]:
    """Open a page in a browser context of its own and check its record at the end. On failure a screenshot is
    saved in `SCREENSHOTS`. options: of the context, such as `viewport`."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page, seen = context.new_page(), Seen(allowed=allowed)
    page.on("request", lambda request: seen.urls.append(request.url))
    page.on("console", lambda message: _note(seen, message.type, message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    try:
        page.goto(url + path)
        yield page, seen
        seen.check(url)
    except BaseException:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        name = os.environ.get("PYTEST_CURRENT_TEST", "page").split("::")[-1].split(" ")[0]
        page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '_')}.png", full_page=True)
        raise
    finally:
        context.close()


def _note(seen: Seen, kind: str, text: str) -> None:
    """Record a console message if it is an error or a warning."""
    if kind in ("error", "warning"):
        seen.complaints.append(text)
