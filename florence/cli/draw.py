"""`florence draw`: the answers in a file of `florence bulk`, each drawn on its picture."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from florence.answers.files import PictureAnswer, read_each
from florence.bulk.items import item_named
from florence.cli.telling import SOME_FAILED, tell_lines
from florence.errors import FlorenceError, RequestError
from florence.export.drawing import Colours, Drawing, check_size
from florence.export.names import FileNames
from florence.types.tasks import TASKS


def draw(arguments: argparse.Namespace) -> int:
    """`florence draw`."""
    drawing = Drawing(
        font=arguments.font,
        colours=read_colours(arguments.colours),
        opacity=arguments.opacity,
        overlay=arguments.overlay,
    )
    return draw_answers(drawing, arguments.results, arguments.out, arguments.pictures)


def draw_answers(
    drawing: Drawing, results: Path, out: Path, pictures: Path, tasks: frozenset[str] = frozenset()
) -> int:
    """Draw each answer in the file `results` into the directory `out`; returns the exit status.

    `pictures`: where relative paths begin. `tasks`: in any spelling; empty for all. Raises RequestError
    where `out` is neither new nor empty, or `results` holds no answer.
    """
    check_new(out)
    answers = (each for each in read_each(results) if not _is_other(each, tasks))
    first = next(answers, None)
    if first is None:
        raise RequestError(f"{results} holds no answer")
    out.mkdir(parents=True, exist_ok=True)
    names, drawn, failed = FileNames(), 0, 0
    for answer in itertools.chain([first], answers):
        try:
            draw_answer(drawing, answer, pictures, out, names)
            drawn += 1
        except (FlorenceError, OSError) as error:
            failed += 1
            about = f"{answer.picture}, {answer.task}: " if isinstance(answer, PictureAnswer) else ""
            tell_lines([f"not drawn: {about}{error}"])
    tell_lines([f"{drawn} drawn in {out}" + (f", {failed} not drawn" if failed else "")])
    return SOME_FAILED if failed else 0


def check_new(out: Path) -> None:
    """Raises RequestError where `out` is neither new nor an empty directory."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RequestError(f"{out} is not a new or empty directory; name another OUT")


def is_asked(answer: PictureAnswer, tasks: frozenset[str]) -> bool:
    """Whether an answer's task is among these, each spelt in any way; an empty set means all."""
    return not tasks or any(TASKS.means(task, answer.task) for task in tasks)


def _is_other(answer: PictureAnswer | RequestError, tasks: frozenset[str]) -> bool:
    return isinstance(answer, PictureAnswer) and not is_asked(answer, tasks)


def read_colours(given: Sequence[str]) -> Colours:
    """Colours by label, from texts such as car=red. Raises RequestError for a text of another form."""
    pairs = [text.rpartition("=") for text in given]
    for text, (label, _, colour) in zip(given, pairs, strict=True):
        if not label or not colour:
            raise RequestError(f"--colours takes LABEL=COLOUR, such as car=red, got {text!r}")
    return Colours({label: colour for label, _, colour in pairs})


def draw_answer(
    drawing: Drawing, answer: PictureAnswer | RequestError, pictures: Path, folder: Path, names: FileNames
) -> None:
    """Write one answer's drawing into the folder, as PICTURE_TASK.png.

    Raises FlorenceError and OSError where the answer or its picture can't be read, or the file not written.
    """
    if isinstance(answer, RequestError):
        raise answer
    picture = item_named(answer.picture, pictures).image()
    check_size(picture, answer)
    drawn = drawing.draw(picture, answer.annotations(), answer.caption())
    words = re.sub(r"\W+", "_", answer.task.lower()).strip("_")  # it may be a prompt, with any characters
    drawn.save(folder / f"{names.new(answer.picture, f'_{words[:40]}')}.png")
