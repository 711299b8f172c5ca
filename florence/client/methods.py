"""The fifteen tasks as methods, written once for both clients, which differ in what a call returns.

`Client` returns answers, `AsyncClient` awaitables of the same answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar, Unpack

from florence.client.exchange import CallOptions, Region
from florence.client.pictures import Picture

TextT = TypeVar("TextT")
BoxesT = TypeVar("BoxesT")
QuadsT = TypeVar("QuadsT")
PolygonsT = TypeVar("PolygonsT")
FoundT = TypeVar("FoundT")
AnyT = TypeVar("AnyT")


class TaskMethods(ABC, Generic[TextT, BoxesT, QuadsT, PolygonsT, FoundT, AnyT]):
    """One method for each task. `image`: a path, bytes, a PIL image or pixels (see `pictures.Picture`).

    All raise what `florence.client.errors` lists. Answers hold pixels of the picture after its EXIF turn.
    """

    @abstractmethod
    def _ask(
        self,
        image: Picture,
        task: str,
        options: CallOptions,
        text: str | None = None,
        region: Region | None = None,
    ) -> Any:
        """The answer, or what will become it."""

    def run(
        self,
        image: Picture,
        task: str,
        text: str | None = None,
        *,
        region: Region | None = None,
        **options: Unpack[CallOptions],
    ) -> AnyT:
        """Any task, by its name or token: for programs that learn at run time which. The result's `kind` says
        what it is."""
        answer: AnyT = self._ask(image, task, options, text, region)
        return answer

    def caption(self, image: Picture, **options: Unpack[CallOptions]) -> TextT:
        """A short caption of the picture."""
        answer: TextT = self._ask(image, "caption", options)
        return answer

    def detailed_caption(self, image: Picture, **options: Unpack[CallOptions]) -> TextT:
        """A caption of a few sentences."""
        answer: TextT = self._ask(image, "detailed_caption", options)
        return answer

    def more_detailed_caption(self, image: Picture, **options: Unpack[CallOptions]) -> TextT:
        """A paragraph about the picture."""
        answer: TextT = self._ask(image, "more_detailed_caption", options)
        return answer

    def caption_to_phrase_grounding(
        self, image: Picture, text: str, **options: Unpack[CallOptions]
    ) -> BoxesT:
        """A box for each thing that a given caption names."""
        answer: BoxesT = self._ask(image, "caption_to_phrase_grounding", options, text=text)
        return answer

    def object_detection(self, image: Picture, **options: Unpack[CallOptions]) -> BoxesT:
        """A box and a category for each object."""
        answer: BoxesT = self._ask(image, "object_detection", options)
        return answer

    def dense_region_caption(self, image: Picture, **options: Unpack[CallOptions]) -> BoxesT:
        """A box and a short description for each object."""
        answer: BoxesT = self._ask(image, "dense_region_caption", options)
        return answer

    def region_proposal(self, image: Picture, **options: Unpack[CallOptions]) -> BoxesT:
        """Boxes around whatever stands out, without labels."""
        answer: BoxesT = self._ask(image, "region_proposal", options)
        return answer

    def ocr(self, image: Picture, **options: Unpack[CallOptions]) -> TextT:
        """The text that stands in the picture."""
        answer: TextT = self._ask(image, "ocr", options)
        return answer

    def ocr_with_region(self, image: Picture, **options: Unpack[CallOptions]) -> QuadsT:
        """The text that stands in the picture, piece by piece, with a quadrilateral around each."""
        answer: QuadsT = self._ask(image, "ocr_with_region", options)
        return answer

    def referring_expression_segmentation(
        self, image: Picture, text: str, **options: Unpack[CallOptions]
    ) -> PolygonsT:
        """The outline of the thing that a given text describes."""
        answer: PolygonsT = self._ask(image, "referring_expression_segmentation", options, text=text)
        return answer

    def region_to_segmentation(
        self, image: Picture, region: Region, **options: Unpack[CallOptions]
    ) -> PolygonsT:
        """The outline of the thing in a given region."""
        answer: PolygonsT = self._ask(image, "region_to_segmentation", options, region=region)
        return answer

    def open_vocabulary_detection(self, image: Picture, text: str, **options: Unpack[CallOptions]) -> FoundT:
        """Boxes, or outlines, of the things that a given text names."""
        answer: FoundT = self._ask(image, "open_vocabulary_detection", options, text=text)
        return answer

    def region_to_category(self, image: Picture, region: Region, **options: Unpack[CallOptions]) -> TextT:
        """The category of the thing in a given region."""
        answer: TextT = self._ask(image, "region_to_category", options, region=region)
        return answer

    def region_to_description(self, image: Picture, region: Region, **options: Unpack[CallOptions]) -> TextT:
        """A description of the thing in a given region."""
        answer: TextT = self._ask(image, "region_to_description", options, region=region)
        return answer

    def region_to_ocr(self, image: Picture, region: Region, **options: Unpack[CallOptions]) -> TextT:
        """The text that stands in a given region."""
        answer: TextT = self._ask(image, "region_to_ocr", options, region=region)
        return answer
