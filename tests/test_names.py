"""Names: each stands for one class, a task's meaning stands in one place, and tests read no private names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from florence.types.tasks import TASKS

PACKAGE = Path(__file__).resolve().parents[1] / "florence"
FOREIGN = {"_active", "_buffers", "_cdata", "_parameters", "_patch_lang", "_replace", "_schema"}
"""Private names of other libraries that tests read."""
NAMES = {key for task in TASKS.values() for key in (task.token, task.name)}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """The path and syntax tree of each module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))


def public_types(tree: ast.Module) -> Iterator[str]:
    """The names of classes and of type aliases, which are written as classes are; constants are upper
    case."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_no_two_public_types_share_a_name() -> None:
    """No two public classes or type aliases of the package, demo included, share a name."""
    places = defaultdict(list)
    for path, tree in trees():
        for name in public_types(tree):
            if not name.startswith("_") and not name.isupper() and len(name) > 1 and name[0].isupper():
                places[name].append(str(path))
    type_variables = {name for name in places if name.endswith("T")}
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not shared.keys() - type_variables, shared


def compared(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions that a module compares with, or looks up by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)
        elif isinstance(node, ast.Set):
            yield from node.elts
        elif isinstance(node, ast.Subscript):
            yield node.slice
        elif isinstance(node, ast.MatchValue):
            yield node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "frozenset":
            yield from node.args


def test_what_a_task_means_stands_in_its_table() -> None:
    """No module compares a task's token or name with its own text, or looks something up by one."""
    for path, tree in trees():
        for expression in compared(tree) if path.parts[0] != "demo" else ():
            for node in ast.walk(expression):
                assert not (isinstance(node, ast.Constant) and node.value in NAMES), (
                    f"{path}:{node.lineno}: ask a field of Task"
                )


def private(name: str) -> bool:
    """Return whether a name is private and not on the list of other libraries' names."""
    return name.startswith("_") and not name.startswith("__") and name not in FOREIGN


def test_tests_read_public_names_of_the_product_only() -> None:
    """Tests read and import no private name, except attributes of their own class, and import from no
    other test module."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls", "os"}:
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                assert not node.module.startswith("test_"), f"{path.name} imports from {node.module}"
                names = [each.name for each in node.names if node.module.startswith("florence")]
            assert not any(map(private, names)), f"{path.name}:{getattr(node, 'lineno', 0)}: {names}"
