"""The playground in a real browser with the demo checkpoint: each task, by pointer, touch and keyboard."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Seen, open_page
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from serving import ROOT, Server

from florence.types.tasks import TASKS, Input, Task

pytestmark = pytest.mark.system
SAMPLE = ROOT / "data" / "scene_04.jpg"
SIZE = (321, 359)
TEXT = "a yellow triangle"
REGION = (221, 215, 284, 276)


@pytest.fixture(scope="module")
def opened(browser: Browser, demo_server: Server) -> Iterator[tuple[Page, Seen]]:
    """A page that tests share if they leave it unchanged."""
    with open_page(browser, demo_server.url, "/ui") as (page, seen):
        page.wait_for_selector(".card")
        yield page, seen


@pytest.fixture
def page(opened: tuple[Page, Seen]) -> Page:
    """The shared page."""
    return opened[0]


def fields_of(task: Task) -> dict[str, Any]:
    """The form fields that a task needs."""
    given: dict[Input, dict[str, Any]] = {Input.TEXT: {"text": TEXT}, Input.REGION: {"region": list(REGION)}}
    return given.get(task.input, {})


def ask(page: Page, task: str, card: int = 0) -> Locator:
    """Choose a task in a card, fill in what it needs, and return the card."""
    shown = page.locator(".card").nth(card)
    shown.get_by_label("Task", exact=True).select_option(task)
    if (text := shown.get_by_label("Text", exact=True)).is_visible():
        text.fill(TEXT)
    for name, value in zip(("x1", "y1", "x2", "y2"), REGION, strict=True):
        if (corner := shown.get_by_label(name)).is_visible():
            corner.fill(str(value))
    return shown


def run(page: Page) -> None:
    """Press the button, and wait for all answers."""
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#run")).to_have_text("Run")


def shown(card: Locator, tab: str) -> str:
    """The text of a tab of a card's answer."""
    if not card.get_by_role("tab", name=tab).is_visible():
        card.get_by_text("JSON and code").click()
    card.get_by_role("tab", name=tab, exact=True).click()
    expect(card.get_by_role("tabpanel")).not_to_have_text("…")
    return card.get_by_role("tabpanel").inner_text()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_gives_the_endpoints_answer(page: Page, demo_server: Server, task: Task) -> None:
    """Each task shows the endpoint's typed JSON, v2's original JSON, and items or text."""
    card = ask(page, task.name)
    run(page)
    typed, original = (json.loads(shown(card, name)) for name in ("Typed JSON", "Original JSON"))
    data = {name: str(value) for name, value in fields_of(task).items()}
    files = {"image": SAMPLE.read_bytes()}
    endpoint = httpx.post(f"{demo_server.url}/{task.name}", files=files, data=data, timeout=60).json()
    assert typed["result"] == endpoint["result"]
    assert set(original) == {task.token}
    result = typed["result"]
    if result["kind"] == "text":
        expect(card.locator(".text")).to_have_text(result["text"])
    else:
        items = result.get("detections") or result.get("regions") or result["instances"]
        expect(card.locator(".item")).to_have_count(len(items))
        expect(card.locator(".shape")).to_have_count(len(items))


@pytest.mark.parametrize("name", ["object_detection", "open_vocabulary_detection", "region_to_category"])
def test_the_programs_give_the_same_answer(page: Page, tmp_path: Path, name: str) -> None:
    """The shown curl command, Python client program and v2 program give the answer beside the picture."""
    (tmp_path / "scene_04.jpg").write_bytes(SAMPLE.read_bytes())
    card = ask(page, name)
    run(page)
    result = json.loads(shown(card, "Typed JSON"))["result"]
    original = json.loads(shown(card, "Original JSON"))

    def output(*command: str) -> str:
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert json.loads(output("bash", "-c", shown(card, "curl")))["result"] == result
    answered = output(sys.executable, "-c", shown(card, "Python client"))
    assert answered.startswith(f"kind='{result['kind']}'")
    with Image.open(tmp_path / "answer.png") as drawn:
        assert drawn.height >= SIZE[1]
    assert output(sys.executable, "-c", shown(card, "v2 program")) == f"{original}\n"


def test_a_region_is_drawn_with_the_mouse(page: Page) -> None:
    """A region drawn from any corner is sent in pixels of the picture."""
    card = ask(page, "region_to_category")
    box = card.locator(".drawing").bounding_box()
    assert box is not None
    scale = box["width"] / SIZE[0]
    x1, y1, x2, y2 = (REGION[0] - 4, REGION[1] - 4, REGION[2] + 4, REGION[3] + 4)
    page.mouse.move(box["x"] + x2 * scale, box["y"] + y2 * scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.move(box["x"] + x1 * scale, box["y"] + y1 * scale)
    page.mouse.up()
    run(page)
    command = shown(card, "curl")
    drawn = json.loads(command.partition("region=")[2].partition("'")[0])
    assert all(abs(one - other) <= 2 for one, other in zip(drawn, (x1, y1, x2, y2), strict=True))
    expect(card.locator(".text")).to_have_text("triangle")


def test_items_show_label_and_score(page: Page) -> None:
    """The item under the pointer or selected shows label and score; a label's items can be hidden."""
    card = ask(page, "object_detection")
    run(page)
    moon = card.locator(".item", has_text="moon")
    moon.hover()
    expect(card.locator(".plate.active")).to_have_text("moon 99 %")
    expect(card.locator(".shape.active")).to_have_count(1)
    moon.click()
    page.mouse.move(0, 0)
    expect(moon).to_have_attribute("aria-pressed", "true")
    expect(card.locator(".plate.active")).to_have_text("moon 99 %")
    card.locator(".chip", has_text="moon").click()
    expect(card.locator(".shape:not(.gone)")).to_have_count(3)
    card.locator(".chip", has_text="moon").click()
    expect(card.locator(".shape:not(.gone)")).to_have_count(4)


def test_a_captions_phrases_are_found_in_one_click(page: Page) -> None:
    """One click marks a caption's phrases in its text and in the picture."""
    card = ask(page, "caption")
    run(page)
    caption = card.locator(".text").inner_text()
    card.get_by_role("button", name="Find its phrases in the picture").click()
    expect(card.locator(".phrase").first).to_be_visible()
    assert card.locator(".text").inner_text() == caption
    phrases = card.locator(".phrase").all_inner_texts()
    assert len(phrases) >= 3
    assert all(phrase in caption for phrase in phrases)
    shown(card, "v2 program")  # a longer card must not move the boxes off the picture
    layer, picture = (card.locator(name).first.bounding_box() for name in (".layer", "figure img"))
    assert layer == picture
    assert card.locator(".shape").count() >= len(phrases)


def test_one_beam_streams(opened: tuple[Page, Seen]) -> None:
    """A caption with one beam is streamed, and ends with the same text."""
    page, seen = opened
    card = ask(page, "more_detailed_caption")
    page.get_by_text("More options").click()
    page.get_by_label("num_beams").fill("1")
    before = seen.asked("/generate_stream")
    run(page)
    assert seen.asked("/generate_stream") == before + 1
    text = card.locator(".text").inner_text()
    assert json.loads(shown(card, "Original JSON")) == {"<MORE_DETAILED_CAPTION>": text}
    assert json.loads(shown(card, "Typed JSON"))["result"]["text"] == text
    assert '"num_beams": 1' in shown(card, "v2 program")
    page.get_by_role("button", name="Clear the options").click()
    page.get_by_text("More options").click()


def test_the_form_of_options_is_the_documents(page: Page, demo_server: Server) -> None:
    """Each declared option has a field with a label."""
    document = httpx.get(f"{demo_server.url}/docs.json", timeout=60).json()
    declared = document["components"]["schemas"]["PlainInput"]["properties"]
    names = page.locator(".option label").all_inner_texts()
    assert sorted(page.locator(".option [name]").evaluate_all("all => all.map(each => each.name)")) == sorted(
        set(declared) - {"image"}
    )
    assert len(names) == len(declared) - 1


def test_a_wrong_option_is_reported_in_words(browser: Browser, demo_server: Server) -> None:
    """A card shows the service's error; a missing text is reported before anything is sent."""
    with open_page(browser, demo_server.url, "/ui", allowed=("400",)) as (page, seen):
        page.wait_for_selector(".card")
        page.get_by_text("More options").click()
        page.get_by_label("num_beams").fill("99")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("num_beams must be an integer from 1 to")
        page.get_by_role("button", name="Clear the options").click()
        page.get_by_label("Task", exact=True).select_option("referring_expression_segmentation")
        sent = len(seen.urls)
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("Type what to look for.")
        assert len(seen.urls) == sent


def test_several_tasks_stand_side_by_side(browser: Browser, demo_server: Server) -> None:
    """Several tasks go in one call; a failing one shows its error, and a card can be removed."""
    with open_page(browser, demo_server.url, "/ui") as (page, seen):
        page.wait_for_selector(".card")
        for _ in range(2):
            page.get_by_role("button", name="Add a task beside").click()
        ask(page, "referring_expression_segmentation", 2)
        page.locator(".card").nth(2).get_by_label("Text", exact=True).fill("<OD>")
        run(page)
        expect(page.locator(".card").nth(0).locator(".item")).to_have_count(4)
        expect(page.locator(".card").nth(1).locator(".text")).to_contain_text("moon")
        expect(page.locator(".card").nth(2).get_by_role("alert")).to_contain_text(
            "must not contain a task token"
        )
        assert (seen.asked("/analyze"), seen.asked("/object_detection")) == (1, 0)
        boxes = [page.locator(".card").nth(index).bounding_box() for index in range(2)]
        first, second = (box or {} for box in boxes)
        assert first["y"] == second["y"]
        assert first["x"] < second["x"]
        page.locator(".card").nth(2).get_by_role("button", name="Remove this task").click()
        expect(page.locator(".card")).to_have_count(2)


def test_a_prompt_of_ones_own(page: Page) -> None:
    """A custom prompt is sent word for word, and its answer read as requested."""
    card = ask(page, "prompt")
    card.get_by_label("Prompt").fill("What does the image describe?")
    card.get_by_label("Read its answer as").select_option("tags")
    run(page)
    result = json.loads(shown(card, "Typed JSON"))["result"]
    assert result["kind"] == "tags"
    assert "client.prompt(" in shown(card, "Python client")
    expect(card.locator(".text")).to_have_text(result["text"])


def test_the_keyboard_alone(browser: Browser, demo_server: Server) -> None:
    """Picture, task, text, run, items and tabs work with the keyboard alone, and the focus is visible."""
    with open_page(browser, demo_server.url, "/ui") as (page, _):
        page.wait_for_selector(".card")

        def tab_to(wanted: str) -> None:
            for _ in range(60):
                if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                    return
                page.keyboard.press("Tab")
            pytest.fail(f"Tab does not lead to {wanted}")

        tab_to('.sample[title^="Six"]')
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#chosen")).to_contain_text("busy_00.jpg")
        tab_to("select.task")
        page.keyboard.type("Referring")
        tab_to('.card input[type="text"]')
        page.keyboard.type("a star")
        page.keyboard.press("Enter")
        expect(page.locator(".item").first).to_be_visible()
        tab_to(".item")
        expect(page.locator(".shape.active")).to_have_count(1)
        page.keyboard.press("Space")
        expect(page.locator(".item").first).to_have_attribute("aria-pressed", "true")
        tab_to("summary:has(+ .tabs)")
        page.keyboard.press("Enter")
        tab_to('[role="tab"]')
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="curl")).to_be_focused()
        expect(page.get_by_role("tabpanel")).to_contain_text("curl")


def test_a_telephone(browser: Browser, demo_server: Server) -> None:
    """At a width of 390 pixels nothing is cut off, and a region can be drawn with a finger."""
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with open_page(browser, demo_server.url, "/ui", **phone) as (page, _):
        page.wait_for_selector(".card")
        expect(page.get_by_role("button", name="Take a picture")).to_be_visible()
        card = ask(page, "region_to_segmentation")
        run(page)
        expect(card.locator(".item")).to_have_count(1)
        shown(card, "Typed JSON")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391)"
        assert page.evaluate(f"{wide}.filter(e => !e.closest('pre, svg, .plates')).length") == 0
        assert page.evaluate("getComputedStyle(document.querySelector('.drawing')).touchAction") == "none"


def test_dark_mode(browser: Browser, demo_server: Server) -> None:
    """The system's dark setting gives light text on a dark ground."""
    with open_page(browser, demo_server.url, "/ui", color_scheme="dark") as (page, _):
        page.wait_for_selector(".card")
        levels = [page.evaluate(_LEVEL, part) for part in ("backgroundColor", "color")]
        assert levels[0] < 40
        assert levels[1] > 200


_LEVEL = "part => Math.max(...getComputedStyle(document.body)[part].match(/\\d+/g).slice(0, 3).map(Number))"


def test_pictures_of_ones_own(browser: Browser, demo_server: Server, tmp_path: Path) -> None:
    """A picture comes from a file, by paste or by drop; one that the browser can't show works too."""
    tiff, text = tmp_path / "scene.tiff", tmp_path / "notes.txt"
    with Image.open(SAMPLE) as scene:
        scene.save(tiff)
    text.write_text("no picture")
    paste = """([name, data, kind]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], `${kind}.jpg`, { type: "image/jpeg" }));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true })
            : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    data = base64.b64encode(SAMPLE.read_bytes()).decode()
    with open_page(browser, demo_server.url, "/ui", allowed=("400",)) as (page, _):
        page.wait_for_selector(".card")
        for kind in ("paste", "drop"):
            page.evaluate(paste, ["", data, kind])
            expect(page.locator("#chosen")).to_have_text(f"{kind}.jpg · 321 × 359")
        page.locator("#file").set_input_files(tiff)
        expect(page.locator("#chosen")).to_contain_text("scene.tiff")
        run(page)
        expect(page.locator(".item")).to_have_count(4)
        expect(page.locator(".layer").first).to_be_visible()
        page.locator("#file").set_input_files(text)
        expect(page.locator("#chosen")).to_contain_text("notes.txt")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("picture")


def test_the_demo_checkpoint_says_what_it_knows(page: Page) -> None:
    """A bold note says before the first request what the demo checkpoint knows."""
    note = page.locator("#demo strong")
    expect(note).to_be_visible()
    expect(note).to_contain_text("it knows only drawn shapes and words")
