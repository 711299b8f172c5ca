"""`florence export`: a file of answers as labels, captions or drawings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from florence.answers.files import PictureAnswer, read_each
from florence.bulk.items import item_named
from florence.bulk.question import parse_file
from florence.cli.bulk_arguments import FORMATS
from florence.cli.draw import check_new, draw_answers, is_asked
from florence.cli.telling import SOME_FAILED, tell_lines
from florence.errors import FlorenceError, RequestError
from florence.export.coco import Categories, coco_dataset, label_map
from florence.export.drawing import Drawing
from florence.export.labelled import Labelled, keep_labels, labelled_pictures
from florence.export.labelstudio import write_label_studio
from florence.export.names import FileNames


@dataclass(frozen=True, slots=True)
class Export:
    """What to make of a file of answers, and where.

    `format`: one of `FORMATS`. `out`: a directory; None: beside the pictures. `tasks`: in any spelling;
    empty for all. `folder`: where relative paths of pictures begin.
    """

    format: str
    out: Path | None
    tasks: frozenset[str] = frozenset()
    folder: Path = Path()

    def check(self) -> None:
        """Raises RequestError where something would be overwritten, or where the format needs an `out`."""
        if self.out is None:
            if self.format != "txt":
                raise RequestError(f"{self.format} needs --out, a new or empty directory")
        else:
            check_new(self.out)


def export(arguments: argparse.Namespace) -> int:
    """`florence export`."""
    tasks = frozenset(arguments.task or ())
    wanted = Export(arguments.format, arguments.out, tasks, arguments.pictures)
    wanted.check()
    return export_results(wanted, arguments.results, arguments)


def read_exports(arguments: argparse.Namespace) -> list[Export]:
    """The exports of `florence bulk --export`. Raises RequestError before anything is asked."""
    exports = []
    for given in arguments.export:
        format, mark, out = given.partition("=")
        if format not in FORMATS or (mark and not out):
            raise RequestError(f"--export takes FORMAT=OUT with one of {', '.join(FORMATS)}, got {given!r}")
        exports.append(Export(format, Path(out) if out else None))
        exports[-1].check()
    label_ids(arguments.label_map, ())  # raises now what would be raised after the run
    return exports


def export_results(wanted: Export, results: Path, arguments: argparse.Namespace) -> int:
    """Export the answers in the file `results`; returns the exit status. Raises RequestError where none
    fits."""
    if wanted.format == "drawn":
        return draw_answers(Drawing(), results, wanted.out or Path(), wanted.folder, wanted.tasks)
    answers = _Answers(results, wanted.tasks)
    failed: Sequence[str] = ()
    if wanted.format == "txt":
        made, failed = write_captions(answers, wanted)
    else:
        pictures = labelled_pictures((each.picture, each) for each in answers)
        made = len(pictures)
        failed = _write_labels(wanted, pictures, arguments) if pictures else ()
    if not made and not answers.failed:
        kind = "text" if wanted.format == "txt" else "answer"
        raise RequestError(f"{results} holds no {kind} of these tasks")
    tell_lines([*answers.failed, *(f"not exported: {line}" for line in failed)])
    left_out = len(failed) + len(answers.failed)
    where = "beside the pictures" if wanted.out is None else f"in {wanted.out}"
    tell_lines(
        [f"{made - len(failed)} pictures {where}" + (f", {left_out} not exported" if left_out else "")]
    )
    return SOME_FAILED if left_out else 0


class _Answers:
    """The answers in a file, of some tasks or of all; `failed`: a message for each line that is not an
    answer."""

    def __init__(self, results: Path, tasks: frozenset[str]) -> None:
        self._results, self._tasks = results, tasks
        self.failed: list[str] = []

    def __iter__(self) -> Iterator[PictureAnswer]:
        for each in read_each(self._results):
            if isinstance(each, RequestError):
                self.failed.append(f"not exported: {each}")
            elif is_asked(each, self._tasks):
                yield each


def _write_labels(wanted: Export, pictures: list[Labelled], arguments: argparse.Namespace) -> Sequence[str]:
    """Write the pictures' labels; returns a message for each picture that could not be exported."""
    placeless = any(each.texts for each in pictures) and not any(each.places for each in pictures)
    if placeless and wanted.format != "labelstudio":
        raise RequestError(
            f"these answers have no locations, which {wanted.format} needs; export them as txt"
        )
    ids = label_ids(arguments.label_map, pictures)
    dropped = keep_labels(pictures, ids, only=arguments.only_labels)
    if dropped:
        tell_lines([f"{dropped.total()} labels are left out: {', '.join(map(repr, sorted(dropped)[:8]))}"])
    out, folder = wanted.out or Path(), wanted.folder
    if wanted.format == "coco":
        out.mkdir(parents=True, exist_ok=True)
        content = coco_dataset(((each.name, each) for each in pictures), categories=ids)
        (out / "annotations.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return ()
    if wanted.format == "labelstudio":
        write_label_studio(pictures, sorted(ids, key=lambda name: ids[name]), out)
        return ()
    from florence.export.datasets import write_voc, write_yolo  # numpy's import takes time

    write = {"yolo": write_yolo, "voc": write_voc}[wanted.format]
    return write(pictures, ids, out, _opener(folder))


def label_ids(file: Path | None, pictures: Sequence[Labelled]) -> Mapping[str, int]:
    """Number by label: the label map of `file`, else 1, 2, ... in the labels' alphabetical order. Raises
    RequestError where the file is not a label map."""
    if file is None:
        return Categories.of(pictures)
    try:
        return label_map(_read_labels(file), first=1)
    except (RequestError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} is not a label map: {error}") from None


def _read_labels(file: Path) -> Any:
    """The label map in the file: labels in order, or numbers by label."""
    if file.suffix.lower() == ".txt":
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    content: Any = parse_file(file)
    if content is None:
        raise RequestError("it is empty")
    if isinstance(content, dict):
        content = content.get("categories", content.get("names", content))
    if isinstance(content, dict) and all(isinstance(name, int) for name in content):
        return {name: number for number, name in content.items()}  # YOLO's data.yaml
    return content


def write_captions(answers: _Answers, wanted: Export) -> tuple[int, list[str]]:
    """Write a .txt for each picture with its text, into the directory or beside the picture.

    Returns how many there are to write, and a message for each that failed. An existing file with other
    content is not overwritten. Raises RequestError for a picture with several texts.
    """
    failed: list[str] = []
    texts: dict[str, str] = {}
    for each in answers:
        if not (text := each.caption()):
            continue
        if texts.setdefault(each.picture, text) != text:
            raise RequestError(
                f"{each.picture!r} has several texts, but a caption is one text; choose it with --task"
            )
    if wanted.out is not None and texts:
        wanted.out.mkdir(parents=True, exist_ok=True)
    names = FileNames()
    for name, text in texts.items():
        try:
            file = (
                _beside(name, wanted.folder) if wanted.out is None else wanted.out / f"{names.new(name)}.txt"
            )
            _write_caption(file, text)
        except (FlorenceError, OSError) as error:
            failed.append(f"{name}: {error}")
    return len(texts), failed


def _beside(name: str, folder: Path) -> Path:
    """The caption's file beside a picture; its name has the number of a page or frame."""
    item = item_named(name, folder)
    if callable(item.source):
        raise RequestError("it is not a local file; name a directory with --out")
    file = Path(item.source)
    place = "".join(f"_{kind}_{number}" for kind, number in item.place.items())
    return file.with_name(f"{file.stem}{place}.txt")


def _write_caption(file: Path, text: str) -> None:
    content = text + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != content:
        raise RequestError(f"{file} exists with another text; remove it, or name another --out")
    file.write_text(content, encoding="utf-8")


def _opener(folder: Path) -> Callable[[str], tuple[bytes | None, Image.Image]]:
    """A function that opens an answer's picture by name: the file's bytes (None for a page or frame), and the
    image."""

    def opened(name: str) -> tuple[bytes | None, Image.Image]:
        item = item_named(name, folder)
        content = item.read()
        image = replace(item, source=lambda: content).image()
        return (None if item.place else content), image

    return opened
