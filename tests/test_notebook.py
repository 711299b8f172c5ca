"""The notebook in docs/ is valid; its cells run in order against the demo checkpoint and print their
stored output."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from typing import Any

import pytest
from PIL import Image
from serving import ROOT, Server

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """The cells of this kind, `code` or `markdown`."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def run_cell(code: str, names: dict[str, Any]) -> tuple[str, object]:
    """The printed text, and the value of the last line if it is an expression, as in Jupyter."""
    tree, printed, value = ast.parse(code), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            expression = compile(ast.Expression(last.value), NOTEBOOK.name, "eval")
            value = eval(expression, names)  # noqa: S307  (the notebook's own)
    return printed.getvalue(), value


def kept(cell: dict[str, Any]) -> tuple[str, str, bool]:
    """A cell's stored outputs: the printed text, the value's text, and whether there is a picture."""
    printed = value = ""
    picture = False
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            printed += "".join(output["text"])
        else:
            picture = picture or "image/png" in output["data"]
            value = "".join(output["data"].get("text/plain", ""))
    return printed, value, picture


@pytest.mark.slow
def test_each_cell_runs_and_gives_what_is_kept(demo_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell gives its stored output when it runs in docs/; only the address differs."""
    monkeypatch.chdir(ROOT / "docs")
    names: dict[str, Any] = {}
    for cell in cells("code"):
        code = "".join(cell["source"]).replace("http://localhost:8000", demo_server.url)
        printed, value = run_cell(code, names)
        shown, text, picture = kept(cell)
        assert printed == shown
        assert isinstance(value, Image.Image) == picture
        assert picture or text == ("" if value is None else repr(value))


def test_a_cell_has_its_outputs_and_no_machine_path() -> None:
    """The file has pictures and texts without a run, distinct cell ids as the format requires, and no
    machine path."""
    code = cells("code")
    assert sum(kept(cell)[2] for cell in code) >= 2
    ids = [cell["id"] for cell in (*code, *cells("markdown"))]
    assert len(ids) == len(set(ids))
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "/home/" not in text
