"""The service's pages as files: their paths, headers and links, without a browser."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from api_examples import SCENE, answers, small_picture
from fake_model import FakeModel
from serving import ROOT
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message
from v2 import roomy
from waiting import PATIENCE_S

from florence import Florence2
from florence.server.http.held import PIECE
from florence.server.http.routing import middleware_of
from florence.server.keys import keys_of
from florence.server.pages import site
from florence.server.pages.site import Site
from florence.server.typed.examples import ANSWERS_PATH, PICTURE_PATH
from florence.server.v2.inference import Inference, ModelRepository

PAGES = Path(site.__file__).parent
HTML = {"accept": "text/html,*/*;q=0.8"}
SERVED = sorted(
    path.name for folder in ("ui", "api", "shared", "samples") for path in (PAGES / folder).iterdir()
)


def client_of(model: FakeModel | None, *, keys: str | None = None, playground: bool = True) -> TestClient:
    """A client of the service's middleware with its pages, and a stand-in for other routes."""
    inference = Inference(PATIENCE_S)
    inference.model = model  # type: ignore[assignment]
    pages = Site(inference, public=keys is None, playground=playground)
    repository = ModelRepository([inference])
    middleware = middleware_of(repository, 10_000, keys_of(keys, None), site=pages, budget=roomy())
    other = Route("/{path:path}", lambda request: PlainTextResponse("other"), methods=["GET", "POST"])
    app = Starlette(routes=[other], middleware=middleware)
    return TestClient(app, follow_redirects=False)


@pytest.fixture
def pages(model: FakeModel) -> TestClient:
    """A client of the pages."""
    return client_of(model)


@pytest.mark.parametrize("path", ["/", "/ui", "/docs", *(f"/pages/{name}" for name in SERVED), "/pages/none"])
def test_every_page_forbids_other_hosts(pages: TestClient, path: str) -> None:
    """Each page and error has a policy that allows only this host, and no inline script or style."""
    reply = pages.get(path, headers=HTML)
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert reply.status_code == (404 if path.endswith("none") else 200)
    assert policy["default-src"] == "'none'"
    assert {source for sources in policy.values() for source in sources.split()} <= {
        "'none'", "'self'", "blob:", "data:"
    }  # fmt: skip
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_large_file_is_sent_in_pieces(pages: TestClient) -> None:
    """A large file is sent in pieces, so a client that does not read costs little memory."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    path = max((PAGES / "api").iterdir(), key=lambda path: path.stat().st_size)
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/pages/{path.name}",
        "query_string": b"",
        "headers": [],
    }
    asyncio.run(pages.app(scope, receive, send))
    bodies = [message.get("body", b"") for message in messages]
    assert b"".join(bodies) == path.read_bytes()
    assert max(map(len, bodies)) == PIECE < len(path.read_bytes())


@pytest.mark.parametrize("page", ["root.html", "ui.html", "docs.html"])
def test_a_page_names_only_files_that_there_are(page: str) -> None:
    """A page links only existing files, by relative addresses for use below any proxy path, and has no
    inline script or style."""
    text = (PAGES / page).read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"$]+)"', text)
    assert named
    for address in named:
        assert address in (".", "docs", "ui") or address.removeprefix("pages/") in SERVED, address
    assert not re.search(r"<style|<script(?! src)|\sstyle=|\son\w+=", text)
    assert re.search(r"<title>[^<]+</title>", text)


@pytest.mark.parametrize("path", sorted((PAGES / "ui").glob("*.js")), ids=lambda path: path.name)
def test_a_module_is_short_and_imports_its_neighbours(path: Path) -> None:
    """A module has fewer than 300 lines, a first comment, imports of its neighbours only, and no host's
    address."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ")
    assert len(text.splitlines()) < 300
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(SERVED)
    assert set(re.findall(r"https?://[^\s\"`]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_the_samples_are_those_of_data() -> None:
    """The samples are the files of data/ and one photograph, whose source is named."""
    samples = {path.name: path for path in (PAGES / "samples").iterdir()}
    photographs = {name for name, path in samples.items() if not (ROOT / "data" / name).exists()}
    for name in samples.keys() - photographs:
        assert samples[name].read_bytes() == (ROOT / "data" / name).read_bytes()
    assert photographs == {"coffee.jpg"}
    assert "coffee.jpg" in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_root_says_what_runs(pages: TestClient) -> None:
    """The root is a page for browsers and JSON for others, with the same links; it answers HEAD."""
    page = pages.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    facts = pages.get("/").json()
    assert (facts["name"], facts["ready"], facts["checkpoint"]) == ("florence", True, "fake")
    for link in facts["links"]:
        assert f'href="{link[1:]}"' in page.text
    assert pages.head("/").status_code == 200


def test_the_root_escapes_what_it_shows(model: FakeModel) -> None:
    """The root page escapes the checkpoint's name, which is any path."""
    model.checkpoint = "<script>alert(1)</script>$links"
    page = client_of(model).get("/", headers=HTML).text
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_pages_need_neither_key_nor_model(model: FakeModel) -> None:
    """Pages are served without a key and before the model is loaded; the root then hides the checkpoint's
    name."""
    for client in (client_of(None), client_of(model, keys="alice:" + "a" * 32)):
        for path in ("/", "/ui", "/docs", "/pages/main.js"):
            assert client.get(path, headers=HTML).status_code == 200
        assert "checkpoint" not in client.get("/").json()
    assert client.get("/info").status_code == 401
    assert client_of(None).get("/").json()["ready"] is False


def test_the_playground_can_be_left_out(model: FakeModel) -> None:
    """The playground's page, files and link can be turned off; the API page stays."""
    client = client_of(model, playground=False)
    assert {path: client.get(path).status_code for path in ("/ui", "/pages/main.js", "/docs")} == {
        "/ui": 404, "/pages/main.js": 404, "/docs": 200
    }  # fmt: skip
    assert "/ui" not in client.get("/").json()["links"]


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/ui/", 307, "../ui"), ("/docs/", 307, "../docs"), ("/caption/", 404, None), ("/info/", 404, None),
        ("/static_content/swagger-ui.css", 404, None), ("/assets/x.js", 404, None),
        ("/pages/%2e%2e%2fsite.py", 404, None), ("/pages/ui.html", 404, None),
    ],
)  # fmt: skip
def test_nothing_of_bentomls_pages_is_left(
    pages: TestClient, path: str, status: int, location: str | None
) -> None:
    """BentoML's own files are not served, no redirect goes to the client's Host header, and no file
    outside the pages is readable."""
    reply = pages.get(path, headers={"host": "elsewhere.example"})
    assert (reply.status_code, reply.headers.get("location")) == (status, location)
    if status == 404:
        assert reply.json() == {"error": "Not Found"}


def test_a_file_that_did_not_change_is_not_sent_again(pages: TestClient) -> None:
    """An unchanged file is a 304 by its ETag."""
    first = pages.get("/pages/swagger-ui-bundle.js")
    again = pages.get("/pages/swagger-ui-bundle.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_examples_are_the_demo_checkpoints_answers() -> None:
    """The examples are the demo checkpoint's answers for the picture beside them; `python
    tests/api_examples.py` writes both."""
    assert SCENE.is_file()
    assert abs(len(small_picture()) - PICTURE_PATH.stat().st_size) < 200
    with Florence2.load("demo", device="cpu", dtype="float32") as model:
        made = answers(model, PICTURE_PATH.read_bytes())
    known = json.loads(ANSWERS_PATH.read_text(encoding="utf-8"))
    assert known.keys() == made.keys()
    for name, example in known.items():
        assert example["request"] == made[name]["request"]
        for one, other in zip(_answers(example), _answers(made[name]), strict=True):
            assert one["result"].keys() == other["result"].keys()
            assert json.dumps(_rounded(one["result"])) == json.dumps(_rounded(other["result"])), name


def _answers(example: dict[str, dict[str, object]]) -> list[dict[str, dict[str, object]]]:
    """The answers of an example."""
    answer = example["answer"]
    return answer.get("answers") or [answer]  # type: ignore[return-value, list-item]


def _rounded(value: object) -> object:
    """The value with numbers rounded to two digits, since the last bits differ between processors."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 2) if isinstance(value, float) else value
