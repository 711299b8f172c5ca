"""A fine-tune's prompts through every interface: the demo checkpoint with declared tasks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
from serving import ROOT, Server, free_port, serving
from triton_client import ask_triton

from florence import Florence2
from florence.bulk.lines import read_rows
from florence.bulk.parquet import read_keys
from florence.client import AsyncClient, Client
from florence.client.errors import UnexpectedReply
from florence.errors import NotFound, RequestError, TaskError
from florence.types.declared import TASKS_FILE
from florence.types.results import Detections, JsonValue, Text
from florence.types.tasks import TASKS, prompt_task

pytestmark = pytest.mark.slow

PICTURE = ROOT / "data" / "scene_02.png"
CAPTION, DETECTION = TASKS["<CAPTION>"].prompt, TASKS["<OD>"].prompt
WORDS = "a red circle, black heart, yellow diamond and cyan triangle"
TAGS = ["a red circle", "black heart", "yellow diamond and cyan triangle"]
ROWS = [
    {"token": "<LIST>", "name": "list_all", "prompt": CAPTION, "kind": "tags"},
    {"token": "<SCAN>", "name": "scan", "prompt": DETECTION, "kind": "boxes"},
    {"token": "<FIND>", "name": "find", "prompt": "Locate {input} in the image.", "kind": "boxes"}
    | {"input": "text", "example": "a red circle"},
    {"token": "<READ>", "name": "read", "prompt": "What text is in the region {input}?", "input": "region"},
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with a file of declared tasks."""
    folder = tmp_path_factory.mktemp("fine_tune")
    for file in (ROOT / "florence/demo/checkpoint").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / TASKS_FILE).write_text(json.dumps(ROWS))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A service with that checkpoint, which answers any prompt."""
    ports = {"FLORENCE_GRPC_PORT": str(free_port()), "FLORENCE_GRPC_HOST": "127.0.0.1"}
    settings = {"FLORENCE_MODEL": str(folder), "FLORENCE_DTYPE": "float32", "FLORENCE_PROMPTS": "any"}
    with serving("service:service", **settings, **ports) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    """The service's client."""
    with Client(server.url) as made:
        yield made


def test_the_client_asks_prompts_with_their_kinds(client: Client) -> None:
    """The client's prompts are answered in the requested kind."""
    assert client.prompt(PICTURE, CAPTION).text == WORDS
    assert client.prompt(PICTURE, CAPTION, answer_as="tags").tags == TAGS
    said = client.prompt(PICTURE, CAPTION, answer_as="json")
    assert isinstance(said.result, JsonValue)
    assert (said.value, said.text, bool(said.result.error)) == (None, WORDS, True)
    found = client.prompt(PICTURE, DETECTION, answer_as="boxes")
    assert found.detections == client.object_detection(PICTURE).detections
    assert (found.task, found.seed) == (DETECTION, None)
    assert client.run(PICTURE, prompt_task(CAPTION, "tags")).result.kind == "tags"
    (answered,) = client.map([PICTURE], prompt_task(CAPTION))
    assert answered[1].result.kind == "text"
    with pytest.raises(TaskError, match="not blank"):
        client.prompt(PICTURE, "")


def test_the_client_asks_declared_tasks_with_their_kinds(client: Client) -> None:
    """The client's declared tasks are answered in their kind, by name or token, and mistakes have clear
    errors."""
    assert client.task("list_all", PICTURE, answer_as="tags").tags == TAGS
    assert client.task("<LIST>", PICTURE).result == client.task("list_all", PICTURE).result
    assert isinstance(client.task("find", PICTURE, "a red circle").result, Detections)
    assert isinstance(client.task("read", PICTURE, region=(0, 0, 50, 50)).result, Text)
    assert client.task("caption", PICTURE, answer_as="text").text == WORDS
    with pytest.raises(NotFound, match="did you mean <LIST> or list_all"):
        client.task("list_al", PICTURE)
    with pytest.raises(UnexpectedReply, match="kind"):
        client.task("list_all", PICTURE, answer_as="boxes")
    with pytest.raises(RequestError, match=r"<FIND> needs a text .*a red circle"):
        client.task("find", PICTURE)
    rows = client.info().declared_tasks
    assert [row.name for row in rows] == ["list_all", "scan", "find", "read"]
    answers = client.analyze(PICTURE, [rows[0].task(), (rows[2].task(), "a red circle"), "caption"])
    assert [answer.task for answer in answers] == ["<LIST>", "<FIND>", "<CAPTION>"]
    assert client.run(PICTURE, rows[0].task()).result == client.task("list_all", PICTURE).result
    named = client.analyze(
        PICTURE, ["list_all", ("find", "a red circle"), ("read", (0, 0, 50, 50)), "caption"]
    )
    assert [answer.task for answer in named] == ["<LIST>", "<FIND>", "<READ>", "<CAPTION>"]
    assert [answer.tags for _, answer in client.map([PICTURE] * 2, "list_all")] == [TAGS] * 2
    with pytest.raises(NotFound, match="did you mean <LIST> or list_all"):
        list(client.map([PICTURE] * 9, "list_al"))


def test_asyncio_gives_the_same(server: Server) -> None:
    """The asyncio client gets the same answers."""

    async def ask() -> tuple[str, list[str], str, int | None]:
        async with AsyncClient(server.url) as client:
            said = await client.prompt(PICTURE, CAPTION)
            listed = await client.task("list_all", PICTURE, answer_as="tags")
            assert [answer.tags async for _, answer in client.map([PICTURE], "<LIST>")] == [TAGS]
            drawn = await client.caption(PICTURE, do_sample=True, temperature=5.0)
            again = await client.caption(PICTURE, do_sample=True, temperature=5.0, seed=drawn.seed)
            assert drawn.text == again.text
            return said.text, listed.tags, listed.task, drawn.seed

    text, tags, token, seed = asyncio.run(ask())
    assert (text, tags, token) == (WORDS, TAGS, "<LIST>")
    assert seed is not None


def test_the_library_and_the_service_draw_alike(client: Client, folder: Path) -> None:
    """One seed gives one answer in the library and the service; `top_k` 1 gives the greedy answer."""
    options: Any = {"do_sample": True, "temperature": 8.0, "top_p": 0.9, "seed": 11, "max_new_tokens": 12}
    with Florence2.load(str(folder), device="cpu", dtype="float32") as model:
        here = model.run(str(PICTURE), "<CAPTION>", **options)
        assert client.caption(PICTURE, **options).text == here.result.text  # type: ignore[union-attr]
        greedy = model.run(str(PICTURE), "<CAPTION>", num_beams=1)
        assert model.run(str(PICTURE), "<CAPTION>", do_sample=True, top_k=1).token_ids == greedy.token_ids


def test_v2_answers_them_over_http_and_grpc(server: Server) -> None:
    """v2 answers declared tasks by their kind, and any other prompt as text under itself."""
    picture = PICTURE.read_bytes()
    for task in (b"<LIST>", CAPTION.encode()):
        assert ask_triton(server.grpc_port, picture, task) == {task.decode(): WORDS}
    boxes = ask_triton(server.grpc_port, picture, b"<SCAN>")["<SCAN>"]
    assert boxes == ask_triton(server.grpc_port, picture, b"<OD>")["<OD>"]


def test_the_document_holds_them_after_the_start(server: Server) -> None:
    """After the start the document has the declared tasks, and their example is answered."""
    paths = httpx.get(f"{server.url}/docs.json", timeout=60).json()["paths"]
    assert {"/prompt", "/tasks/list_all", "/tasks/scan", "/tasks/find", "/tasks/read"} <= set(paths)
    example = paths["/tasks/find"]["post"]["requestBody"]["content"]["application/json"]["example"]
    reply = httpx.post(f"{server.url}/tasks/find", json=example, timeout=60)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("where", ["service", "here"])
def test_the_command_line_asks_them(
    florence: Run, server: Server, folder: Path, tmp_path: Path, where: str
) -> None:
    """The command line asks prompts and declared tasks of a service or a local model."""
    at = ["--url", server.url] if where == "service" else ["--model", folder]
    assert florence("run", PICTURE, "--prompt", CAPTION, *at)[:2] == (0, WORDS + "\n")
    tags = "".join(f"{tag}\n" for tag in TAGS)
    assert florence("run", PICTURE, "--prompt", CAPTION, "--answer-as", "tags", *at)[1] == tags
    assert florence("run", PICTURE, "--task", "list_all", *at)[1] == tags
    assert florence("run", PICTURE, "<LIST>", *at)[1] == tags
    found = florence("run", PICTURE, "--task", "find", "a red circle", *at)[1]
    assert "circle" in found
    assert florence("run", PICTURE, "find", "a red circle", *at)[1] == found
    status, _, words = florence("run", PICTURE, "list_al", *at)
    assert (status, "did you mean <LIST> or list_all" in words) == (2, True)
    out = tmp_path / "answers.jsonl"
    for asked in (
        ["--task", "list_all"],
        ["--prompt", CAPTION, "--answer-as", "json"],
        ["--task", "list_all"],
    ):
        assert florence("bulk", PICTURE, *asked, "--out", out, *at)[0] == 0
    packed = tmp_path / "answers.parquet"
    assert florence("bulk", PICTURE, "--task", "list_all", "--out", packed, *at)[0] == 0
    assert list(read_keys(packed)) == [(str(PICTURE), ("<LIST>", None, None, None))]
    rows = list(read_rows(out))
    assert [(row["task"], row["result"]["kind"]) for row in rows] == [("<LIST>", "tags"), (CAPTION, "json")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no task given: use --task or --prompt"),
        (["ocr", "--prompt", "x"], "'ocr' and --prompt are both given"),
        (["a", "b", "--task", "ocr"], "two tasks are given, 'ocr' and 'a'"),
        (["ocr", "--answer-as", "json"], "--answer-as says how the answer to a --prompt is read"),
        (["ocr", "--temperature", "0.5"], "temperature: nothing is drawn without do_sample=true"),
    ],
)
def test_what_the_command_line_can_not_mean_is_refused(florence: Run, words: list[str], message: str) -> None:
    """Conflicting arguments are refused before a model is loaded."""
    status, _, said = florence("run", PICTURE, *words, "--model", "none/such")
    assert (status, message in said) == (2, True), said


def test_the_error_for_an_unknown_task_names_the_ways_to_ask_it(florence: Run, server: Server) -> None:
    """The error for an unknown task says how to declare it or to send it as a prompt."""
    status, _, words = florence("run", PICTURE, "<GENERATE_TAGS>", "--url", server.url)
    assert (status, "FLORENCE_TASKS=promptgen has it), or ask it with --prompt" in words) == (2, True), words


def test_bentomls_own_client_asks_prompts(server: Server) -> None:
    """BentoML's own client can send a prompt."""
    with bentoml.SyncHTTPClient(server.url) as plain:
        answer = plain.prompt(image=PICTURE, prompt=CAPTION, answer_as="tags")
    assert (answer["result"]["tags"], answer["task"]) == (TAGS, CAPTION)


def test_json_is_printed_for_a_person(florence: Run, server: Server) -> None:
    """An answer that is not valid JSON is printed as its text."""
    out = florence("run", PICTURE, "--prompt", CAPTION, "--answer-as", "json", "--url", server.url)[1]
    assert out == WORDS + "\n"


def test_a_wrong_row_ends_the_start_and_is_named(folder: Path, tmp_path: Path) -> None:
    """A wrong row in the tasks file ends the start with one line that names file, row and token."""
    wrong = tmp_path / "tasks.json"
    wrong.write_text(json.dumps([*ROWS, {"token": "<OD>", "name": "mine"}]))
    with serving("service:service", FLORENCE_MODEL=str(folder), FLORENCE_TASKS=str(wrong)) as server:
        assert server.wait() == 1
        assert "row 5: two tasks are called '<OD>'" in server.log
        assert "Traceback" not in server.log
