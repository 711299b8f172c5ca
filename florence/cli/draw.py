"""`florence draw`: the answers in a file of `florence bulk`, each drawn on its picture."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from florence.answers.reading import PictureAnswer, read_each
from florence.cli.bulk import SOME_FAILED
from florence.errors import ImageError, RequestError
from florence.export.drawing import Colours, Drawing
from florence.images.decode import load_image
from florence.images.seen import SEEN


def draw(arguments: argparse.Namespace) -> int:
    """`florence draw`."""
    drawing = Drawing(
        font=arguments.font,
        colours=read_colours(arguments.colours),
        opacity=arguments.opacity,
        overlay=arguments.overlay,
    )
    out: Path = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RequestError(f"{out} is not a new or empty directory; name another OUT")
    answers = read_each(arguments.results)
    first = next(answers, None)
    if first is None:
        raise RequestError(f"{arguments.results} holds no answer")
    out.mkdir(parents=True, exist_ok=True)
    names, drawn, failed = _Names(out), 0, 0
    for answer in itertools.chain([first], answers):
        try:
            draw_answer(drawing, answer, arguments.pictures, names)
            drawn += 1
        except (RequestError, OSError) as error:
            failed += 1
            about = f"{answer.picture}, {answer.task}: " if isinstance(answer, PictureAnswer) else ""
            _tell(f"not drawn: {about}{error}")
    _tell(f"{drawn} drawn in {out}" + (f", {failed} not drawn" if failed else ""))
    return SOME_FAILED if failed else 0


def read_colours(given: Sequence[str]) -> Colours:
    """Colours by label, from texts such as car=red; RequestError for another text."""
    pairs = [text.rpartition("=") for text in given]
    for text, (label, _, colour) in zip(given, pairs, strict=True):
        if not label or not colour:
            raise RequestError(f"--colours takes LABEL=COLOUR, such as car=red, got {text!r}")
    return Colours({label: colour for label, _, colour in pairs})


def draw_answer(
    drawing: Drawing, answer: PictureAnswer | RequestError, pictures: Path, names: _Names
) -> None:
    """Write one answer's drawing. Raises RequestError and OSError where that can't be done."""
    if isinstance(answer, RequestError):
        raise answer
    picture = load_image(pictures / answer.picture, view=SEEN)
    if picture.size != answer.pixel_size:
        raise ImageError(
            f"the answer is about a picture of {answer.image_size.width}x{answer.image_size.height} pixels; "
            f"this one has {picture.width}x{picture.height}"
        )
    drawn = drawing.draw(picture, answer.annotations(), answer.caption())
    drawn.save(names.new(Path(answer.picture).stem, answer.task))


class _Names(set[str]):
    """The files that are written into a directory: PICTURE_TASK.png, numbered where there are several."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def new(self, picture: str, task: str) -> Path:
        words = re.sub(r"\W+", "_", task.lower()).strip("_")  # a prompt stands in a task's place
        stem = f"{picture}_{words[:40]}"
        numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        name = next(name for name in numbered if name.casefold() not in self)
        self.add(name.casefold())  # some file systems take no notice of case
        return self._folder / f"{name}.png"


def _tell(message: str) -> None:
    print(f"florence: {message}", file=sys.stderr)
