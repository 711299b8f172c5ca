"""The allowed imports between modules, read from the sources, so an import inside a function counts too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "florence"

# Node -> rooms of other nodes that it may import. A room is a module or a folder; it is a node of its own,
# except the rooms in PARTS.
DOORS: dict[str, set[str]] = {
    "images": set(),
    "answers": {"errors", "export"},
    "model": {"errors", "types"},
    "checkpoint": {"errors", "images", "model", "types"},
    "engine": {"errors", "model", "types"},
    "runtime": {
        "answers",
        "checkpoint",
        "engine",
        "errors",
        "images",
        "model",
        "readers",
        "types",
    },
    "client": {"errors", "images", "types"},
    "bulk": {"answers", "client", "errors", "images", "runtime", "settings", "types"},
    "evaluation": {"errors", "export", "types"},
    "verification": {
        "answers",
        "checkpoint",
        "engine",
        "errors",
        "images",
        "model",
        "readers",
        "runtime",
        "types",
    },
    "cli": {
        "answers",
        "bulk",
        "client",
        "convert",
        "errors",
        "evaluation",
        "export",
        "florence",
        "images",
        "ray",
        "runtime",
        "settings",
        "types",
        "verification",
    },
    "server": {
        "answers",
        "checkpoint",
        "engine",
        "errors",
        "export",
        "florence",
        "images",
        "runtime",
        "settings",
        "types",
    },
}
# Rooms that form one node. Each may import the rooms before it.
PARTS: dict[str, tuple[str, ...]] = {
    "images": ("errors", "images", "readers", "export"),
    "answers": ("types", "answers"),
    "checkpoint": ("checkpoint", "convert"),
    "runtime": ("settings", "runtime", "florence"),
    "bulk": ("bulk", "ray"),
    "cli": ("mcp", "cli"),
    "server": ("bento", "server", "service"),
}
# Room -> all rooms that it may import, where its node may import more.
NARROW: dict[str, set[str]] = {
    "export": {"errors", "images"},
    "settings": {"engine", "errors", "images", "types"},
    "florence": {"answers", "runtime"},
    "bulk": {"answers", "client", "errors", "images", "types"},
    "ray": {"answers", "bulk", "errors", "images", "runtime", "settings", "types"},
    "mcp": {"answers", "bulk", "errors", "florence", "images", "types"},
    "bento": {"checkpoint", "errors", "settings"},
    "service": {"server"},
}
# Room -> libraries that it may import beside the standard library.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "images": {"PIL", "pillow_heif", "pypdfium2"},
    "readers": {"PIL", "numpy"},
    "model": {"einops", "llvmlite", "numba", "numpy", "torch", "triton"},
    "settings": {"pydantic", "pydantic_settings"},
    "export": {"PIL", "numpy", "supervision"},
    "types": {"pydantic"},
    "answers": {"pyarrow", "pydantic"},
    "bulk": {"PIL", "fsspec", "pyarrow", "yaml"},
    "mcp": {"anyio", "mcp", "pydantic", "starlette", "uvicorn"},
    "checkpoint": {"huggingface_hub", "safetensors", "tokenizers", "torch"},
    "client": {"PIL", "httpx", "pydantic", "tqdm"},
    "convert": {"safetensors", "torch"},
    "engine": {"numpy", "torch"},
    "bento": {"bentoml"},
    "runtime": {"PIL", "numpy"},
    "verification": {"PIL", "peft", "safetensors", "timm", "torch", "transformers"},
    "ray": {"pandas", "pyarrow", "ray"},
    "cli": {"PIL", "ray", "tqdm"},  # ray: only to find out whether it is installed
    "florence": set(),
    "evaluation": {"numpy", "pydantic"},  # the evaluators are imported by name, where they are needed
    "server": {
        "anyio",
        "bentoml",
        "circus",
        "google",
        "grpc",
        "grpc_health",
        "grpc_reflection",
        "h11",
        "httpcore",
        "httpx",
        "opentelemetry",
        "prometheus_client",
        "pybase64",
        "pydantic",
        "pydantic_core",
        "pynvml",
        "starlette",
        "tritonclient",
        "uvicorn",
    },
    "service": set(),
}


def room_of(path: Path) -> str:
    """The room of a file: `florence/model/vision.py` is in "model", `florence/errors.py` in "errors",
    `florence/__init__.py` in "florence"."""
    parts = path.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else (path.name,)
    return "florence" if parts == ("__init__.py",) else parts[0].removesuffix(".py")


@cache
def sources() -> list[Path]:
    """All product modules. The demo world uses the package and is not one of its rooms."""
    return [path for path in [*PACKAGE.rglob("*.py"), ROOT / "service.py"] if room_of(path) != "demo"]


@cache
def rooms() -> set[str]:
    """All rooms."""
    return {room_of(path) for path in sources()}


def node_of(room: str) -> str:
    """The node that a room belongs to."""
    return next((node for node, rooms in PARTS.items() if room in rooms), room)


def may_import(room: str) -> set[str]:
    """The rooms that a room may import, including itself."""
    node = node_of(room)
    own = PARTS.get(node, (room,))
    return {room} | NARROW.get(room, DOORS[node].union(own[: own.index(room)]))


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
    """Each module imports only rooms that its room may import, and only its room's libraries."""
    assert node_of(room) in DOORS, "it is a new room: say in DOORS what it may import"
    for path in sources():
        for module, line in imported(path) if room_of(path) == room else ():
            target = imported_room(module)
            if target is not None:
                assert target in may_import(room), f"{path}:{line}: {room} imports {target}"
            elif room in LIBRARIES and module.split(".")[0] not in {"florence", *sys.stdlib_module_names}:
                assert module.split(".")[0] in LIBRARIES[room], f"{path}:{line}: {room} imports {module}"


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
    """Pickle can run code, so only one room unpickles, and only its command imports that room.

    Service, build and library never load it.
    """
    openers = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(module.split(".")[0] in {"pickle", "dill", "joblib"} for module, _ in imported(path))
        or re.search(r"\btorch\.(load|jit\.load|package)\b|weights_only=", path.read_text(encoding="utf-8"))
    }
    assert openers == {"florence/convert/pickled.py"}
    users = {
        (path.relative_to(PACKAGE).as_posix(), module)
        for path in sources()
        if path.is_relative_to(PACKAGE)
        for module, _ in imported(path)
        if module.startswith("florence.convert")
    }
    assert users == {("cli/convert.py", "florence.convert.convert")}
    assert "florence.server.service" in grown[-1]
    assert not [name for name in grown[-1] if name.startswith("florence.convert")]


def modules_after(*statements: str) -> list[list[str]]:
    """The modules that a new Python process holds after each statement."""
    program = "".join(f"{statement}\nimport sys\nprint(*sys.modules)\n" for statement in statements)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()]


def test_the_doors_have_no_ring() -> None:
    """No room can reach itself by imports."""
    for start in sorted(DOORS.keys() | {room for rooms in PARTS.values() for room in rooms}):
        seen: set[str] = set()
        waiting = may_import(start) - {start}
        while waiting:
            room = waiting.pop()
            seen.add(room)
            waiting |= may_import(room) - seen
        assert start not in seen, start


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
