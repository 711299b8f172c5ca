"""Makes an HTML page: the figures, and the worst answers drawn next to the ground truth.

The page is self-contained and loads nothing from other hosts; text from files and models is escaped. Knows
nothing about tasks.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Final

from florence.errors import ImageError
from florence.evaluation.files.examples import Example, TrueThing
from florence.evaluation.measures.figures import Evaluation
from florence.evaluation.measures.masks import outline_of
from florence.evaluation.measures.writing import text_of
from florence.export.annotation import Annotation
from florence.export.drawing import Colours, Drawing
from florence.export.geometry import box_polygon
from florence.types.results import Detections

MAX_SIDE: Final = 560  # most pixels of a drawn picture's longer side
_QUALITY: Final = 80
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid #8885; border-radius: 6px; }
section { margin: 2rem 0; padding-top: 1.5rem; border-top: 1px solid #8885; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { flex: 1 1 300px; margin: 0; min-width: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
p { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """The evaluation of one set of answers, with the name of what answered."""

    name: str
    evaluation: Evaluation


def worst(evaluation: Evaluation, count: int, better: Evaluation | None = None) -> list[int]:
    """Indices of the `count` rows with the worst answers, worst first; with a `better` evaluation of the same
    questions, of those that lost most against it. Rows that can't be judged come last."""
    qualities = [_known(value) for value in evaluation.quality]
    if better is not None:
        qualities = [own - _known(other) for own, other in zip(qualities, better.quality, strict=True)]
    return sorted(range(len(qualities)), key=qualities.__getitem__)[:count]


def _known(quality: float) -> float:
    return 1.0 if math.isnan(quality) else quality


def html_page(title: str, lines: Sequence[str], answers: Sequence[Shown], rows: Sequence[int]) -> str:
    """The page. `lines`: text at the top. `answers`: one or two sets, to the same questions. `rows`:
    indices of the rows to show."""
    sections = "\n".join(_section(number, answers) for number in rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<pre>{escape(chr(10).join(lines))}</pre>
{sections}
</body>
</html>
"""


def _section(number: int, answers: Sequence[Shown]) -> str:
    example = answers[0].evaluation.rows[number].example
    colours = Colours()
    boxes = any(isinstance(one.evaluation.rows[number].result, Detections) for one in answers)
    places = [_place(thing, boxes) for thing in example.truth.things]
    figures = [_figure("truth", example, places, "; ".join(example.truth.texts), colours)]
    for one in answers:
        row = one.evaluation.rows[number]
        name = f"{one.name}: {_known(one.evaluation.quality[number]):.2f}"
        figures.append(_figure(name, example, row.result.annotations(), text_of(row), colours))
    asked = f"<p>{escape(example.text)}</p>" if example.text else ""
    shown = "\n".join(figures)
    return f'<section><h2>{escape(example.picture)}</h2>{asked}<div class="row">{shown}</div></section>'


def _figure(name: str, example: Example, places: Sequence[Annotation], text: str, colours: Colours) -> str:
    try:
        drawn = Drawing(colours=colours).draw(example.path, places, "")
    except ImageError as error:
        return f"<figure><figcaption>{escape(name)}</figcaption><p>{escape(str(error))}</p></figure>"
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = BytesIO()
    drawn.save(stream, "JPEG", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f'<img src="data:image/jpeg;base64,{data}" width="{drawn.width}" height="{drawn.height}" '
        f'alt="{escape(f"{name}: {example.picture}", quote=True)}"><p>{escape(text)}</p></figure>'
    )


def _place(thing: TrueThing, boxes: bool) -> Annotation:
    """The thing's polygons; its box if answers are boxes, or if it has no outline or a run-length code."""
    outline = outline_of(thing)
    if boxes or thing.outline is None or isinstance(outline, Mapping):
        return Annotation(thing.label, None, [box_polygon(thing.box)], "box")
    return Annotation(thing.label, None, outline, "area")
