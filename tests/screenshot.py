"""README's picture of the playground: `python tests/screenshot.py` makes it again.

It needs Chromium. It shows two tasks on one picture of data/, with the demo checkpoint.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from browser import chromium
from PIL import Image
from playwright.sync_api import Browser, expect
from serving import ROOT, serving_demo

TARGET = ROOT / "docs" / "playground.png"
VIEWPORT = {"width": 1180, "height": 900}
COLOURS = 256  # a palette makes the file a third as large


def picture_of(browser: Browser, url: str) -> Image.Image:
    """A screenshot of the page with the answers, with a palette."""
    page = browser.new_page(viewport=VIEWPORT)
    page.goto(f"{url}/ui")
    expect(page.locator(".card")).to_be_visible()
    page.get_by_role("button", name="Add a task beside").click()
    page.get_by_label("Task", exact=True).nth(1).select_option("detailed_caption")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Find its phrases in the picture").click()
    expect(page.locator(".phrase").first).to_be_visible()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    shot = Image.open(BytesIO(page.screenshot()))
    page.context.close()
    return shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main(target: Path = TARGET) -> None:
    """Write the picture."""
    with serving_demo() as server, chromium() as browser:
        picture_of(browser, server.url).save(target, optimize=True)


if __name__ == "__main__":
    main()
