"""A real browser for tests, Chromium driven by Playwright; what a page asks for and complains of."""

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
"""Where a page is kept, as it looked when its test failed."""
PATIENCE_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; the test is skipped without it, but for FLORENCE_CI."""
    path = program("chromium", "chromium", "CHROMIUM_PROGRAM")
    expect.set_options(timeout=PATIENCE_MS)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # it has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did. allowed: texts of complaints that a test expects."""

    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    def check(self, url: str) -> None:
        """It asked no other host, and the console has no error."""
        hosts = {urlsplit(each).netloc for each in self.urls if not each.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(url).netloc}
        complaints = [each for each in self.complaints if not any(text in each for text in self.allowed)]
        assert complaints == []

    def asked(self, ending: str) -> int:
        """How many requests had a path with this ending."""
        return sum(urlsplit(each).path.endswith(ending) for each in self.urls)


@contextmanager
def open_page(
    browser: Browser, url: str, path: str, *, allowed: tuple[str, ...] = (), **options: Any
) -> Iterator[tuple[Page, Seen]]:
    """A page of a service in a context of its own, and what it did, which is checked at the end. On failure
    a screenshot stays in `SCREENSHOTS`. options: of the context, such as `viewport`."""
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
    if kind in ("error", "warning"):
        seen.complaints.append(text)
