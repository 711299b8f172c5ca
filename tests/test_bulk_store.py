"""Files of answers: every field is read back from every format, and files of others stay unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bulk_runs import answer
from fake_model import RESULT

from florence.answers.columns import answer_schema
from florence.answers.files import read_answers
from florence.bulk.items import PictureItem
from florence.bulk.lock import only_run
from florence.bulk.parquet import read_keys
from florence.bulk.question import PictureQuestion
from florence.bulk.store import Store
from florence.errors import RequestError
from florence.types.answer import TaskAnswer
from florence.types.tasks import TASKS, Input, Kind, Task

ROOT = Path(__file__).resolve().parents[1]
ITEM = PictureItem("in/a.png#page=2", "in/a.png", id="id 7", page=2)
FORMS = [("r.jsonl", 0), ("r.parquet", 0), ("parts", 2)]


def question(kind: Kind) -> PictureQuestion:
    """A question whose answer has this kind."""
    task = next((task for task in TASKS.values() if task.kind is kind), None)
    return PictureQuestion(
        task or Task(f"<{kind}>", kind, "p", Input.NONE, kind, ""), options={"adapter": "mine"}
    )


@pytest.mark.parametrize(("name", "part_rows"), FORMS)
def test_every_kind_of_answer_comes_back(tmp_path: Path, name: str, part_rows: int) -> None:
    """Answers of every kind are read back equal and typed, with the picture, its id and the question."""
    kinds = [kind for kind in RESULT if kind is not Kind.BOXES_OR_POLYGONS]
    answers = [answer(question(kind).task).model_copy(update={"result": RESULT[kind]}) for kind in kinds]
    with Store(tmp_path / name, part_rows) as store:
        for kind, each in zip(kinds, answers, strict=True):
            store.add(ITEM, question(kind), each)
    found = list(read_answers(tmp_path / name))
    fields = list(TaskAnswer.model_fields)
    assert [each.model_dump(include=set(fields)) for each in found] == [each.model_dump() for each in answers]
    assert {(each.picture, each.id, each.adapter) for each in found} == {(ITEM.picture, "id 7", "mine")}
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize(("name", "part_rows"), FORMS)
def test_what_is_kept_is_known_again(tmp_path: Path, name: str, part_rows: int) -> None:
    """Kept answers are recognised by id or picture, and by question, over several runs."""
    asked = question(Kind.TEXT)
    for number in range(5):
        item = PictureItem(f"{number}.png", "", id=None if number % 2 else f"id {number}")
        store = Store(tmp_path / name, part_rows)
        known = store.answered()
        assert known.get(asked.key, set()) == {f"{n}.png" if n % 2 else f"id {n}" for n in range(number)}
        with store:
            store.add(item, asked, answer(asked.task, "x"))
    if part_rows:
        assert [path.name for path in sorted((tmp_path / name).iterdir())] == [
            f"part-{number:06}.parquet" for number in range(5)
        ]


def test_parts_are_written_as_answers_come(tmp_path: Path) -> None:
    """Parts with this number of rows are complete when they appear.

    A process that ends between writing a part and removing its lines leaves no answer twice.
    """
    asked = question(Kind.TEXT)
    with Store(tmp_path / "parts", 3) as store:
        for number in range(7):
            store.add(PictureItem(f"{number}.png", ""), asked, answer(asked.task))
            whole = len(list((tmp_path / "parts").glob("*.parquet"))) if number >= 2 else 0
            assert whole == (number + 1) // 3
            if number == 4:
                lines = store.lines.read_bytes()
    assert len(list(read_keys(tmp_path / "parts"))) == 7
    last = sorted((tmp_path / "parts").iterdir())[-1]
    last.unlink()
    store.lines.write_bytes(lines)  # the lines that are already in the second part
    again = Store(tmp_path / "parts", 3)
    assert len(again.answered()[asked.key]) == 6
    with again:
        again.add(PictureItem("6.png", ""), asked, answer(asked.task))
    kept = [each.picture for each in read_answers(tmp_path / "parts")]
    assert kept == [f"{number}.png" for number in range(7)]


def test_one_run_at_a_time_writes_into_a_file(tmp_path: Path) -> None:
    """A second run into a file is refused while the first one runs, and allowed after its end or its kill;
    other files are free."""
    out = tmp_path / "r.jsonl"
    held = "import sys; from pathlib import Path; from florence.bulk.lock import only_run\n"
    held += "with only_run(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", held, str(out)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(RequestError, match="another run writes into"), only_run(out):
            pass
        with only_run(tmp_path / "other.jsonl"):
            process.kill()
            process.wait(60)
    with only_run(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_holds_parts_only(tmp_path: Path) -> None:
    """A directory without part size, a part size without directory, and a foreign part are errors; nothing is
    written."""
    import pyarrow.parquet

    (tmp_path / "parts").mkdir()
    with pytest.raises(RequestError, match="is a directory; name a file in it"):
        Store(tmp_path / "parts").check(tmp_path / "f.jsonl")
    (tmp_path / "r.parquet").write_bytes(b"")
    with pytest.raises(RequestError, match="parts need a directory"):
        Store(tmp_path / "r.parquet", 3).check(tmp_path / "f.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"picture": ["a"]}), tmp_path / "parts" / "x.parquet")
    with pytest.raises(RequestError, match="not a file of `florence bulk`"):
        Store(tmp_path / "parts", 3).answered()


def test_every_field_of_an_answer_has_a_column() -> None:
    """Every field of an answer and of its parts has a column, derived from the types."""
    schema = answer_schema()
    assert set(TaskAnswer.model_fields) <= set(schema.names)
    result = {field.name for field in schema.field("result").type}
    assert {"kind", "text", "tags", "value", "error", "detections", "regions", "instances"} <= result
