"""The names of what a file of answers can be made into."""

from __future__ import annotations

from typing import Final

FORMATS: Final = ("coco", "yolo", "voc", "labelstudio", "txt", "drawn")
