"""The service's pages in a real browser: the root, the API page, and the playground with keys, with a
checkpoint's own tasks, and without a service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from browser import open_page
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page, Route, expect
from screenshot import TARGET, picture_of
from serving import Server, serving_fake

pytestmark = pytest.mark.system
KEY = "k" * 32
OWN = [
    {"token": "<GENERATE_TAGS>", "name": "generate_tags", "kind": "tags", "summary": "Tags of the picture."},
    {"token": "<DocVQA>", "name": "docvqa", "input": "text", "summary": "A question about a page."},
]
WIDTHS = pytest.mark.parametrize("width", [390, 1280])


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A service with an API key and a checkpoint's own tasks."""
    with serving_fake({"own": OWN}, FLORENCE_API_KEYS=f"alice:{KEY}") as server:
        server.wait_ready()
        yield server


@WIDTHS
def test_the_root_leads_everywhere(browser: Browser, fake_server: Server, width: int) -> None:
    """The root page has a title and the service's state, fits the screen, and its links work."""
    viewport = {"width": width, "height": 800}
    with open_page(browser, fake_server.url, "/", viewport=viewport) as (page, _):
        assert page.title() == "florence"
        expect(page.locator(".facts")).to_contain_text("ready")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for link in page.locator("a").all():
            reply = page.request.get(f"{fake_server.url}/{link.get_attribute('href')}")
            assert reply.status == 200
        page.get_by_role("link", name="/ui").click()
        expect(page.locator(".card")).to_be_visible()
        expect(page.locator("#demo")).to_be_hidden()


def operation(page: Page, name: str) -> Locator:
    """The part of Swagger UI for one endpoint."""
    return page.locator(f"#operations-Tasks-{name}")


@WIDTHS
def test_the_api_page_opens_on_a_form_that_works(browser: Browser, demo_server: Server, width: int) -> None:
    """A picture is chosen in advance: one click sends it without the empty options and shows the answer.
    Each error has one example."""
    viewport = {"width": width, "height": 800}
    with open_page(browser, demo_server.url, "/docs", viewport=viewport) as (page, _):
        form = operation(page, "object_detection")
        expect(form.locator('input[type="file"]')).to_be_visible()
        assert form.locator('input[type="file"]').evaluate("input => input.files[0].name") == "scene_04.jpg"
        form.get_by_role("button", name="Execute").click()
        answer = form.locator(".live-responses-table")
        expect(answer.locator(".response-col_status").last).to_contain_text("200")
        expect(answer).to_contain_text('"diamond"')
        assert form.locator(".curl").inner_text().count("-F") == 1
        for status in ("400", "413", "503", "504"):
            expect(form.locator(f'tr.response[data-code="{status}"]').last).to_contain_text('"error"')
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_api_pages_examples_are_answered(browser: Browser, demo_server: Server) -> None:
    """The filled-in examples of a task with a region and of many tasks get answers."""
    with open_page(browser, demo_server.url, "/docs") as (page, _):
        for name in ("region_to_category", "analyze"):
            form = operation(page, name)
            form.locator(".opblock-summary-control").click()
            form.get_by_role("button", name="Execute").click()
            expect(form.locator(".live-responses-table .response-col_status").last).to_contain_text("200")


def test_a_key_is_asked_for_and_kept_in_memory(browser: Browser, locked: Server) -> None:
    """A wrong key is asked for again; the right one opens the page, is stored nowhere in the browser,
    appears in no program, and is gone after a reload."""
    with open_page(browser, locked.url, "/ui", allowed=("401",)) as (page, _):
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("The service answers with an API key only.")
        for key, wrong in (("w" * 32, True), (KEY, False)):
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
            if wrong:
                expect(dialog).to_contain_text("That key is not known to the service.")
        expect(page.locator(".card")).to_be_visible()
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".item")).to_have_count(1)
        page.get_by_text("JSON and code").click()
        page.get_by_role("tab", name="curl").click()
        expect(page.get_by_role("tabpanel")).to_contain_text("Authorization: Bearer $FLORENCE_API_KEY")
        assert KEY not in page.content()
        assert page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == (
            '[{},{},""]'
        )
        page.reload()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_contain_text("API key")


def test_tasks_of_the_checkpoint_appear(browser: Browser, locked: Server) -> None:
    """The checkpoint's own tasks appear in a separate group, and are asked alone or beside others."""
    with open_page(browser, locked.url, "/ui", allowed=("401",)) as (page, seen):
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator(".card")).to_be_visible()
        group = page.locator('optgroup[label="Of this checkpoint"] option')
        assert group.all_inner_texts() == ["Generate tags", "Docvqa"]
        page.get_by_label("Task", exact=True).select_option("tasks/generate_tags")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".text")).to_have_text("a, fake")
        assert seen.asked("/tasks/generate_tags") == 1
        page.get_by_text("JSON and code").click()
        page.get_by_role("tab", name="Python client").click()
        expect(page.get_by_role("tabpanel")).to_contain_text('client.task("generate_tags", "scene_04.jpg")')
        page.get_by_role("button", name="Add a task beside").click()
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".card").nth(0).locator(".text")).to_have_text("a, fake")
        assert seen.asked("/analyze") == 1


def test_an_option_that_is_declared_appears(browser: Browser, fake_server: Server) -> None:
    """A new option appears from its schema, with its bounds or the names in /info, and its value is sent."""
    document = httpx.get(f"{fake_server.url}/docs.json", timeout=60).json()
    info = httpx.get(f"{fake_server.url}/info", timeout=60).json()
    options = document["components"]["schemas"]["PlainInput"]["properties"]
    options["adapter"] = {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "Which adapter."}
    options["halves"] = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 4}, {"type": "null"}]}
    sent: list[str] = []

    def answered(route: Route) -> None:
        sent.append((route.request.post_data_buffer or b"").decode("latin-1"))
        route.abort()

    with open_page(browser, fake_server.url, "/", allowed=("ERR_FAILED",)) as (page, _):
        page.route("**/docs.json", lambda route: route.fulfill(json=document))
        page.route("**/info", lambda route: route.fulfill(json=info | {"adapters": [{"name": "cars"}]}))
        page.route("**/object_detection", answered)
        page.goto(f"{fake_server.url}/ui")
        page.get_by_text("More options").click()
        page.locator("#other-count").click()
        assert page.get_by_label("halves").get_attribute("max") == "4"
        page.get_by_label("halves").fill("3")
        page.get_by_label("adapter").select_option("cars")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert 'name="adapter"\r\n\r\ncars' in sent[0]
        assert 'name="halves"\r\n\r\n3' in sent[0]
        assert "num_beams" not in sent[0]


def test_a_service_that_is_gone_or_busy_is_reported(browser: Browser, fake_server: Server) -> None:
    """The page reports that the service is unreachable or busy, and works again afterwards."""
    with open_page(browser, fake_server.url, "/ui", allowed=("ERR_FAILED", "503")) as (page, _):
        expect(page.locator(".card")).to_be_visible()
        page.route("**/object_detection", lambda route: route.abort())
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("The service can't be reached. Is it still running?")
        busy = json.dumps({"error": "256 requests are waiting, which is the limit; come back in 3 s"})
        page.unroute("**/object_detection")
        page.route("**/object_detection", lambda route: route.fulfill(status=503, body=busy))
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The service is busy: 256 requests are waiting")
        page.unroute("**/object_detection")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".item")).to_have_count(1)


def test_a_request_can_be_stopped(browser: Browser) -> None:
    """The same button stops a request; its connection ends."""
    with serving_fake({"delay_s": 20.0}) as server:
        server.wait_ready()
        with open_page(browser, server.url, "/ui") as (page, _):
            expect(page.locator(".card")).to_be_visible()
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.locator(".card.busy")).to_be_visible()
            page.get_by_role("button", name="Stop", exact=True).click()
            expect(page.get_by_role("alert")).to_have_text("Stopped.")
            expect(page.locator("#run")).to_have_text("Run")


def test_the_readmes_picture_is_what_the_playground_shows(browser: Browser, demo_server: Server) -> None:
    """The picture made by `python tests/screenshot.py` equals a new one, except for this machine's fonts."""
    again = picture_of(browser, demo_server.url).convert("RGB")
    with Image.open(TARGET) as committed:
        assert committed.size == again.size
        assert np.asarray(ImageChops.difference(committed.convert("RGB"), again)).mean() < 12
    assert TARGET.stat().st_size < 150_000
