"""Reads the options of a library call: generation parameters, the view of the picture, the task.

Knows nothing about engines and readers.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image
from PIL.ImageColor import getrgb

from florence.errors import OptionError, TaskError, quote
from florence.images.decode import load_image
from florence.images.limits import ImageLimits
from florence.images.seen import View
from florence.images.tiles import Tiling
from florence.readers.picture import PictureSource
from florence.runtime.gathering import OnTile
from florence.runtime.pipeline import TaskText
from florence.types.options import (
    GenerationParameters,
    RequestKeywords,
    RequestParameters,
    read_request_parameters,
)
from florence.types.pictures import Pictures
from florence.types.tasks import AnswerAs, Kind, Task, TaskTable, prompt_task
from florence.types.tiling import OF_BOXES, OF_TEXT

Item = tuple[PictureSource, str | Task] | tuple[PictureSource, str | Task, TaskText]
"""A picture, a task, and the task's text or region where it takes one."""


class RunOptions(RequestKeywords, total=False):
    """Options of one request: those of `RequestKeywords`, and those that are not about generation.

    `region`: x1, y1, x2, y2 in pixels of the (turned) picture, or `<loc_n>` text; `text` may hold it as well.
    `prompt`: the model's prompt, word for word, in place of a task. `answer_as`: how the answer to it is
    parsed, a `Kind`; "text" if left out. `timeout_s`: seconds until `DeadlineExceeded`. `on_tile`: with
    `tiles`, called with the numbers of finished and of all tiles. `parameters`: all options as one validated
    object, in place of single ones.
    """

    region: TaskText
    prompt: str | None
    answer_as: Kind | AnswerAs
    timeout_s: float | None
    on_tile: OnTile | None
    parameters: GenerationParameters | None


def parameters_of(options: RunOptions) -> RequestParameters:
    """The options as one object. Raises `OptionError`."""
    others = RunOptions.__annotations__.keys() - RequestKeywords.__annotations__.keys()
    single = {name: value for name, value in options.items() if name not in others and value is not None}
    parameters = options.get("parameters")
    if parameters is None:
        return read_request_parameters(single)
    if single:
        raise OptionError(f"parameters holds all generation options; leave out {', '.join(single)}")
    if isinstance(parameters, RequestParameters):
        return parameters
    return RequestParameters.model_validate(parameters.model_dump())


def view_of(
    parameters: RequestParameters, usual: Pictures, max_tiles: int, *, reads_text: bool = False
) -> View:
    """How the request's picture becomes RGB and is cut. `usual`: the default for `pictures`; `max_tiles`:
    most tiles; `reads_text`: whether a task looks for text."""
    original = (parameters.pictures or usual) == "original"
    background = "white" if parameters.background is None else parameters.background
    tiling = tiling_of(parameters, max_tiles, reads_text=reads_text)
    return View(original, getrgb(background)[:3], parameters.frame, parameters.page, tiling)


def tiling_of(parameters: RequestParameters, max_tiles: int, *, reads_text: bool = False) -> Tiling | None:
    """How the request's picture is cut; None: it is not."""
    if not parameters.tiled:
        return None
    usual = OF_TEXT if reads_text else OF_BOXES
    scale, overlap = parameters.tile_scale, parameters.tile_overlap
    return Tiling(
        grid=parameters.grid,
        scale=usual.scale if scale is None else scale,
        overlap=usual.overlap if overlap is None else (overlap, overlap),
        most=max_tiles,
    )


def reads_text(tasks: TaskTable, task: str | Task) -> bool:
    """Whether a task reads text with its locations in each tile of a picture."""
    found = tasks.find(task) if isinstance(task, str) else task
    asked = None if found is None else tasks.find(found.in_tiles)
    return asked is not None and asked.kind is Kind.QUADS


def own_picture(image: PictureSource, view: View, limits: ImageLimits) -> PictureSource:
    """The picture, copied if the caller might change or close it. Raises `ImageError` then.

    A copy is upright RGB without metadata, so that readers don't apply the file's orientation or profile
    again.
    """
    if not isinstance(image, Image.Image):
        return image
    picture = load_image(image, limits, view).copy()
    picture.info.clear()
    return picture


def grey_picture() -> bytes:
    """A small picture, encoded, for readers to decode."""
    file = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def most_places(options: RunOptions, max_tiles: int) -> int:
    """The most places in the queue that a request with these options takes."""
    try:
        tiling = tiling_of(parameters_of(options), max_tiles)
    except OptionError:  # the request itself will raise it
        return 1
    columns, rows = (1, 1) if tiling is None else tiling.grid or (tiling.most, 1)
    return columns * rows


def task_of(task: str | Task | None, options: RunOptions) -> str | Task:
    """The requested task, given as such or as a prompt. Raises `TaskError` unless exactly one of them is
    given."""
    prompt, answer_as = options.get("prompt"), options.get("answer_as")
    if task is not None:
        if prompt is not None or answer_as is not None:
            raise TaskError(
                f"prompt and answer_as replace a task, but {quote(task)} is given too; leave it out"
            )
        return task
    if prompt is None:
        raise TaskError("neither a task nor a prompt is given")
    return prompt_task(prompt, answer_as or Kind.TEXT)
