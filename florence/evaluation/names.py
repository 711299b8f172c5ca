"""Names and descriptions of the subjects of `florence evaluate`. Imports nothing, so that help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_ALL: Final = (
    ("captions", "--coco captions: BLEU, ROUGE-L, CIDEr; METEOR where Java is"),
    ("detection", "--coco instances: average precision and recall of boxes by class"),
    ("dense-captions", "--coco, a phrase for each annotation: the same by phrase, and its wording"),
    ("open-vocabulary", "--coco instances: each class asked for by its name"),
    ("segmentation", "--coco instances: the outline of what is in each box"),
    ("grounding", "--coco, a phrase for each annotation: the box of each phrase of a caption"),
    ("referring", "--coco, a phrase for each annotation: the one thing that it refers to"),
    ("ocr", "--coco, a text for each annotation: words, character error rate, places"),
    ("vqa", "--questions, --annotations of VQA, or of DocVQA the first alone: accuracy, ANLS"),
    ("prompts", "--rows, JSON lines with picture, answer, text: the very text, or fields of JSON"),
)

SUMMARIES: Final[Mapping[str, str]] = MappingProxyType(dict(_ALL))
