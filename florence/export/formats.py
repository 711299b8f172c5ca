"""The names of the formats that a file of answers can be exported to."""

from __future__ import annotations

from typing import Final

FORMATS: Final = ("coco", "yolo", "voc", "labelstudio", "txt", "drawn")
