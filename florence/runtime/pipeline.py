"""From a caller's picture and task to the engine's request, and from its tokens to the typed answer.

The one place that joins the rooms: pictures, tasks, regions, tokens and answers. Knows nothing about threads,
devices or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence.answers import Piece, parse_answer
from florence.answers.answer import Answer
from florence.checkpoint.tokenizer import Tokenizer
from florence.engine.config import DEFAULT_MAX_NEW_TOKENS
from florence.engine.request import Generation, GenerationOptions, Request, digest_of
from florence.errors import OptionError, TaskError
from florence.images.decode import Preprocessing, load_image, resize_pixels
from florence.images.limits import ImageLimits
from florence.model.config import GenerationDefaults
from florence.types.answer import ImageSize, Timings, Usage
from florence.types.options import GenerationParameters
from florence.types.regions import region_text
from florence.types.tasks import TASKS, Input, Kind, Task, TaskTable

T = TypeVar("T")
Picture = Image.Image | bytes | str | Path | Callable[[], bytes]
"""A PIL picture, an encoded one's bytes, its path, or what gives its bytes when they are read."""


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture as the model takes it. `size`: width and height of the original; `pixels`: uint8 [height,
    width, 3] at the model's input size; `digest`: of the pixels."""

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    digest: bytes


class SharedPicture:
    """One picture of many requests: read by the first of them that comes to it, once. Not safe for
    threads."""

    def __init__(self, image: Picture) -> None:
        self._image = image
        self._outcome: ReadPicture | Exception | None = None

    def read(self, read: Callable[[Picture], ReadPicture]) -> ReadPicture:
        """The picture; raises what reading it raised, each time."""
        if self._outcome is None:
            try:
                self._outcome = read(self._image)
            except Exception as error:  # noqa: BLE001  (raised below, to all who ask)
                self._outcome = error
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


TaskText = str | Sequence[float] | None
"""A text, or a region: four numbers in pixels or `<loc_n>` text."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request for the engine, and what the answer will need to know of it."""

    task: Task
    image_size: tuple[int, int]
    request: Request


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Turns pictures and tasks into requests, and generations into answers, for one checkpoint.

    `max_new_tokens`: of the longest answer there is room for (FLORENCE_MAX_NEW_TOKENS, at most the decoder's
    positions); longer wishes are cut to it. `checkpoint`: its name, said in every answer.
    """

    checkpoint: str
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    defaults: GenerationDefaults
    limits: ImageLimits
    max_new_tokens: int
    tasks: TaskTable = TASKS

    def prepare(
        self,
        image: Picture | SharedPicture,
        task: str | Task,
        text: TaskText,
        parameters: GenerationParameters,
        deadline: float | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Prepared:
        """Check and read everything that a request holds.

        `image`: a PIL picture as it is; all else is turned by its EXIF orientation.
        `task`: a token, a name, or a `Task`. `deadline`: a reading of `time.monotonic()`.
        `on_token`: as `engine.Request` has it, for the tasks that answer in text and requests with one beam.

        Raises `TaskError`, `OptionError`, `RegionError`, `ImageError` and `ImageTooLarge`.
        """
        known = self.tasks.resolve(task)
        self.tasks.check_input(known, text)  # first: cheaper than decoding a picture
        options = self.options(parameters)
        if on_token is not None:
            _check_streamed(known, options)
        picture = image.read(self.read) if isinstance(image, SharedPicture) else self.read(image)
        prompt = self.tasks.build_prompt(known, _input_text(known, text, picture.size))
        request = Request(
            pixels=picture.pixels,
            prompt_ids=tuple(self.tokenizer.encode(prompt)),
            options=options,
            deadline=deadline,
            on_token=on_token,
            digest=picture.digest,
        )
        return Prepared(known, picture.size, request)

    def read(self, image: Picture) -> ReadPicture:
        """The picture at the model's input size. Raises as `prepare` does for its picture."""
        picture = load_image(image() if callable(image) else image, self.limits)
        size = self.preprocessing
        pixels = resize_pixels(picture, size.height, size.width, size.resample)
        return ReadPicture(picture.size, pixels, digest_of(pixels))

    def options(self, parameters: GenerationParameters) -> GenerationOptions:
        """The parameters with the checkpoint's own settings in place of those that are None.

        Raises OptionError where more tokens are demanded than an answer may have.
        """
        wished, defaults = parameters, self.defaults
        fewest = wished.min_new_tokens or 0
        if fewest > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens must be at most {self.max_new_tokens}, the most tokens of an answer here "
                f"(FLORENCE_MAX_NEW_TOKENS), got {fewest}"
            )
        most = wished.max_new_tokens or max(DEFAULT_MAX_NEW_TOKENS, fewest)
        return GenerationOptions(
            num_beams=_either(wished.num_beams, defaults.num_beams),
            max_new_tokens=min(most, self.max_new_tokens),
            min_new_tokens=fewest,
            no_repeat_ngram_size=_either(wished.no_repeat_ngram_size, defaults.no_repeat_ngram_size),
            early_stopping=_either(wished.early_stopping, defaults.early_stopping),
            length_penalty=_either(wished.length_penalty, defaults.length_penalty),
        )

    def answer(self, prepared: Prepared, generation: Generation, total_s: float) -> Answer:
        """The typed answer of what the engine generated, `total_s` seconds after the request came."""
        token_ids = list(generation.token_ids)
        raw_text = self.tokenizer.decode(token_ids)
        width, height = prepared.image_size
        parsed = parse_answer(
            prepared.task,
            raw_text,
            image_size=prepared.image_size,
            pieces=[Piece(*piece) for piece in self.tokenizer.pieces(token_ids)],
            token_logprobs=[0.0, *generation.token_logprobs],  # the start token was given, not generated
        )
        timings = generation.timings
        return Answer(
            task=prepared.task.token,
            result=parsed.result,
            image_size=ImageSize(width=width, height=height),
            finish_reason=generation.finish_reason,
            usage=Usage(
                picture_tokens=generation.picture_tokens,
                prompt_tokens=len(prepared.request.prompt_ids),
                generated_tokens=len(generation.token_logprobs),
            ),
            timings=Timings(
                queue_s=timings.queue_s, encode_s=timings.encode_s, decode_s=timings.decode_s, total_s=total_s
            ),
            checkpoint=self.checkpoint,
            raw_text=raw_text,
            token_ids=token_ids,
            token_logprobs=list(generation.token_logprobs),
        )


def _input_text(task: Task, text: TaskText, image_size: tuple[int, int]) -> str | None:
    """What goes into the task's prompt: the text as it is, or the region as locations."""
    if text is None:
        return None
    if task.input is Input.REGION:
        return region_text(text, image_size)
    return str(text)  # `check_input` refuses all else


def _check_streamed(task: Task, options: GenerationOptions) -> None:
    if task.kind is not Kind.TEXT:
        raise TaskError(f"{task.token} does not answer in text, so there is nothing to stream")
    if options.num_beams != 1:
        raise OptionError(
            f"a stream needs num_beams=1, this request has {options.num_beams}: beams compete until the last "
            "token, so no part of the answer is final before all of it is"
        )


def _either(wished: T | None, default: T) -> T:
    return default if wished is None else wished
