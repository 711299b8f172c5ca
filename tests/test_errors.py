"""All errors of the package are in one file, whose docstring shows their tree."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from florence import errors
from florence.errors import FlorenceError

PACKAGE = Path(errors.__file__).parent
_ROW = re.compile(r"^([│ ]*)[├└]── (\w+) (\d{3}) +\S", re.MULTILINE)


def test_the_page_names_every_error_under_its_parent_with_its_status() -> None:
    """The tree in the docstring equals the tree of the classes, with their statuses."""
    written: dict[str, tuple[str, int]] = {}
    path = ["FlorenceError"]
    for indent, name, status in _ROW.findall(errors.__doc__ or ""):
        depth = 1 + len(indent) // 4
        path[depth:] = [name]
        written[name] = path[depth - 1], int(status)
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, FlorenceError) and value is not FlorenceError
    ]
    assert written == {
        each.__name__: (each.__base__.__name__, each.status) for each in classes if each.__base__
    }


def test_no_other_module_of_the_server_makes_an_error_of_its_own() -> None:
    """No other module defines an error, except the client's, which report connection failures."""
    names = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    made = {
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("errors.py", "client", "demo")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in names for base in node.bases)
    }
    assert made == set()
