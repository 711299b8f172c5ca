"""The allowed imports between modules, read from the sources, so an import inside a function counts too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "florence"

DOORS: dict[str, dict[str, tuple[str, str]]] = {
    "images": {
        "errors": ("", ""),
        "images": ("errors", "PIL pillow_heif pypdfium2"),
        "readers": ("errors images", "PIL numpy"),
        "export": ("errors images", "PIL numpy supervision"),
    },
    "answers": {
        "types": ("errors export", "pydantic"),
        "answers": ("errors export types", "pyarrow pydantic"),
    },
    "model": {
        "model": ("errors types", "einops llvmlite numba numpy torch triton"),
    },
    "checkpoint": {
        "checkpoint": ("errors images model types", "huggingface_hub safetensors tokenizers torch"),
        "convert": ("checkpoint errors model", "safetensors torch"),
    },
    "engine": {
        "engine": ("errors model types", "numpy torch"),
    },
    "runtime": {
        "settings": ("engine errors images types", "pydantic pydantic_settings"),
        "runtime": (
            "answers checkpoint engine errors images model readers settings types",
            "PIL numpy",
        ),
        "florence": ("answers runtime", ""),
    },
    "client": {
        "client": ("errors images types", "PIL httpx pydantic tqdm"),
    },
    "bulk": {
        "bulk": ("answers client errors images types", "PIL fsspec pyarrow yaml"),
        "ray": ("answers bulk errors images runtime settings types", "pandas pyarrow ray"),
    },
    "evaluation": {
        "evaluation": ("errors export types", "numpy pydantic"),  # the evaluators by name, when needed
    },
    "verification": {
        "verification": (
            "answers checkpoint engine errors images model readers runtime types",
            "PIL peft safetensors timm torch transformers",
        ),
    },
    "cli": {
        "mcp": ("answers bulk errors florence images types", "anyio mcp pydantic starlette uvicorn"),
        "cli": (
            "answers bulk client convert errors evaluation export florence images mcp ray runtime settings "
            "types verification",
            "PIL ray tqdm",  # ray: whether it is installed
        ),
    },
    "server": {
        "bento": ("checkpoint errors settings", "bentoml"),
        "server": (
            "answers bento checkpoint engine errors export florence images runtime settings types",
            "anyio bentoml circus google grpc grpc_health grpc_reflection h11 httpcore httpx opentelemetry "
            "prometheus_client pybase64 pydantic pydantic_core pynvml starlette tritonclient uvicorn",
        ),
        "service": ("server", ""),
    },
    "demo": {
        "demo": (
            "answers checkpoint client errors evaluation export model runtime types",
            "PIL numpy safetensors tokenizers torch transformers",
        ),
    },
}
"""Node -> its rooms -> the rooms, and the libraries, that a room may import. A room is a module or a folder.
Rooms of one node stand in the order in which they may import each other."""
ROOMS = {room: doors for rooms in DOORS.values() for room, doors in rooms.items()}


def room_of(path: Path) -> str:
    """The room of a file: `florence/model/vision.py` is in "model", `florence/errors.py` in "errors",
    `florence/__init__.py` in "florence"."""
    parts = path.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else (path.name,)
    return "florence" if parts == ("__init__.py",) else parts[0].removesuffix(".py")


@cache
def sources() -> list[Path]:
    """All product modules."""
    return [*PACKAGE.rglob("*.py"), ROOT / "service.py"]


@cache
def rooms() -> set[str]:
    """All rooms."""
    return {room_of(path) for path in sources()}


def may_import(room: str) -> set[str]:
    """The rooms that a room may import, itself among them."""
    return {room, *ROOMS[room][0].split()}


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of each import in a file, including those under `if TYPE_CHECKING`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno
            if node.module == "florence":  # `from florence import hub` names a room
                yield from ((f"florence.{alias.name}", node.lineno) for alias in node.names)


def imported_room(module: str) -> str | None:
    """The room of one of this package's modules; None for other modules and for names that
    `florence` offers."""
    if module == "florence":
        return "florence"
    owner, _, rest = module.partition(".")
    room = rest.split(".")[0]
    return room if owner == "florence" and room in rooms() else None


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_go_one_way(room: str) -> None:
    """Each module imports only the rooms and libraries that the table lists for its room; the table lists no
    room in vain."""
    assert room in ROOMS, "it is a new room: say in DOORS what it may import"
    used = {room}
    for path in sources():
        for module, line in imported(path) if room_of(path) == room else ():
            target, library = imported_room(module), module.split(".")[0]
            if target is not None:
                assert target in may_import(room), f"{path}:{line}: {room} imports {target}"
                used.add(target)
            elif library not in {"florence", *sys.stdlib_module_names}:
                assert library in ROOMS[room][1].split(), f"{path}:{line}: {room} imports {module}"
    assert used == may_import(room)


@pytest.fixture(scope="module")
def grown() -> list[list[str]]:
    """The modules of a new Python process: after importing the engine, and then also the service, build and
    library."""
    engine = ["engine.device.runner", "model.florence2", "checkpoint.weights", "checkpoint.preprocessing"]
    rest = ["server.service", "bento.weights", "runtime.florence2"]
    return modules_after(
        *("; ".join(f"import florence.{name}" for name in names) for names in (engine, rest))
    )


@pytest.mark.slow
def test_only_convert_opens_a_pickle(grown: list[list[str]]) -> None:
    """Pickle can run code: one room unpickles, in a program that nothing imports, and only its command leads
    there. Service, build and library never load that room, nor the demo's trainer, which reads its own state
    by `torch.load`."""
    openers = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(module.split(".")[0] in {"pickle", "dill", "joblib"} for module, _ in imported(path))
        or re.search(r"\btorch\.(load|jit\.load|package)\b|weights_only=", path.read_text(encoding="utf-8"))
    }
    assert openers == {"florence/convert/pickled.py", "florence/demo/training/files.py"}
    users = {
        (path.relative_to(PACKAGE).as_posix(), module)
        for path in sources()
        if path.is_relative_to(PACKAGE)
        for module, _ in imported(path)
        if module.startswith("florence.convert")
    }
    assert users == {("cli/convert.py", "florence.convert.convert")}
    assert "florence.server.service" in grown[-1]
    assert not [name for name in grown[-1] if name.startswith(("florence.convert", "florence.demo"))]


def modules_after(*statements: str) -> list[list[str]]:
    """The modules that a new Python process holds after each statement."""
    program = "".join(f"{statement}\nimport sys\nprint(*sys.modules)\n" for statement in statements)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()]


def test_the_doors_have_no_ring() -> None:
    """No room can be reached from itself, nor a node from itself."""
    node_of = {room: node for node, rooms in DOORS.items() for room in rooms}
    rooms = {room: may_import(room) - {room} for room in ROOMS}
    nodes = {
        node: {node_of[target] for room in inner for target in rooms[room]} - {node}
        for node, inner in DOORS.items()
    }
    for graph in (rooms, nodes):
        list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_rooms_of_a_node_stand_in_order() -> None:
    """None imports one that stands behind it."""
    for inner in map(list, DOORS.values()):
        for index, room in enumerate(inner):
            assert not may_import(room) & {*inner[index + 1 :]}, room


def loaded_after(statement: str) -> set[str]:
    """Top-level names of the modules that a new Python process holds after a statement."""
    return tops(modules_after(statement)[0])


def tops(modules: list[str]) -> set[str]:
    """The top-level names of modules."""
    return {name.split(".")[0] for name in modules}


@pytest.mark.parametrize(
    "statement",
    [
        "import florence",
        "from florence import parse_answer as parse; parse('<OD>', 'a' + '<loc_1>' * 4, image_size=(9, 9))",
        "import florence.settings, florence.types.results, florence.types.regions, florence.types.tasks",
    ],
)
def test_parsing_needs_no_torch(statement: str) -> None:
    """The package, its parser and its tables load neither torch nor other slow libraries."""
    heavy = {"torch", "timm", "transformers", "bentoml", "huggingface_hub", "tokenizers", "PIL", "numpy"}
    assert not heavy & loaded_after(statement)


def test_the_client_needs_no_torch() -> None:
    """The client and the commands for a remote service load no library of the model or the server."""
    heavy = {"torch", "timm", "transformers", "bentoml", "starlette", "huggingface_hub", "numpy"}
    assert not heavy & loaded_after("import florence.client")
    assert not heavy & loaded_after("import florence.cli.asking, florence.cli.bulk, florence.cli.serving")


def test_the_edges_need_no_torch() -> None:
    """Reading pictures, tokens and names loads neither torch nor transformers."""
    assert not {"torch", "transformers"} & loaded_after(
        "import florence.checkpoint.hub, florence.images.decode, florence.checkpoint.tokenizer"
    )


@pytest.mark.slow
def test_a_model_runs_without_the_services_packages(grown: list[list[str]]) -> None:
    """Engine, model and checkpoint load neither pydantic nor BentoML, so a GPU machine without them can run
    the model."""
    assert not {"pydantic", "bentoml"} & tops(grown[0])


def test_importing_does_no_work() -> None:
    """Modules have only definitions and constants at their top level: no loops, `with`, calls or
    file access."""
    bodies = ((path, parsed(path).body) for path in PACKAGE.rglob("*.py"))
    for path, node in ((path, node) for path, body in bodies for node in body):
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.Delete), (
            f"{path}:{node.lineno}"
        )
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno} calls something"
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            names = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            assert not names & {"open", "print", "input", "read_settings"}, f"{path}:{node.lineno}"
