"""The formats that a file of answers can be exported to, and the defaults of drawings."""

from __future__ import annotations

from typing import Final

FORMATS: Final = ("coco", "yolo", "voc", "labelstudio", "txt", "drawn")
OPACITY: Final = 0.4
"""Opacity of masks in drawings, unless another is asked for."""
