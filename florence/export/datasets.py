"""Writes data sets in YOLO's and Pascal VOC's layout, by supervision.

A data set includes its pictures, upright, in a format that trainers read; a file in such a format is copied
unchanged. Knows labels and bytes of pictures; knows nothing about where they come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from florence.errors import FlorenceError
from florence.export.coco import label_map
from florence.export.detections import load_supervision, to_detections
from florence.export.drawing import check_size
from florence.export.labelled import Labelled
from florence.export.names import FileNames
from florence.images.decode import inspect
from florence.images.limits import DEFAULT_LIMITS

_CHUNK: Final = 64
"""Pictures that are written at a time: their masks are in memory together."""
_COPIED: Final = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp"}

OpenPicture = Callable[[str], tuple[bytes | None, Image.Image]]
"""From a picture's name to its file's bytes (None for a page or frame) and the picture, upright and RGB."""


def class_ids(ids: Mapping[str, int]) -> dict[str, int]:
    """Ids from 0 without gaps, in the order of the given ones, as YOLO numbers classes."""
    return label_map(sorted(ids, key=lambda name: ids[name]), first=0)  # type: ignore[return-value]


def write_yolo(
    pictures: Sequence[Labelled], ids: Mapping[str, int], folder: Path, opened: OpenPicture
) -> list[str]:
    """`images/`, `labels/` with a .txt each (boxes, or polygons of things with masks), and `data.yaml`.

    Returns errors, a sentence for each picture that was left out. Raises `MissingLibrary` without
    supervision.
    """
    failed: list[str] = []
    classes = class_ids(ids)
    for data in _data_sets(pictures, classes, folder, opened, failed):
        data.as_yolo(annotations_directory_path=str(folder / "labels"))
    _data_set(classes, {}).as_yolo(data_yaml_path=str(folder / "data.yaml"))
    return failed


def write_voc(
    pictures: Sequence[Labelled], ids: Mapping[str, int], folder: Path, opened: OpenPicture
) -> list[str]:
    """`images/`, and `annotations/` with an .xml each. Otherwise as `write_yolo`."""
    failed: list[str] = []
    for data in _data_sets(pictures, class_ids(ids), folder, opened, failed):
        data.as_pascal_voc(annotations_directory_path=str(folder / "annotations"))
    return failed


def _data_sets(
    pictures: Sequence[Labelled],
    classes: Mapping[str, int],
    folder: Path,
    opened: OpenPicture,
    failed: list[str],
) -> Iterable[Any]:
    """supervision's data sets, each of `_CHUNK` pictures, whose files are written to the folder."""
    load_supervision()
    (folder / "images").mkdir(parents=True)
    names, waiting = FileNames(), iter(pictures)
    while some := list(itertools.islice(waiting, _CHUNK)):
        detections = {}
        for picture in some:
            try:
                file = _save(picture, folder / "images" / names.new(picture.name), opened)
            except (FlorenceError, OSError) as error:
                failed.append(f"{picture.name}: {error}")
                continue
            detections[str(file)] = to_detections(picture.places, picture.size, classes)
        yield _data_set(classes, detections)


def _data_set(classes: Mapping[str, int], detections: Mapping[str, Any]) -> Any:
    library = load_supervision()
    return library.DetectionDataset(
        classes=list(classes), images=list(detections), annotations=dict(detections)
    )


def _save(picture: Labelled, stem: Path, opened: OpenPicture) -> Path:
    content, image = opened(picture.name)
    check_size(image, picture)
    header = None if content is None else inspect(content, DEFAULT_LIMITS)
    if content is not None and header and header.orientation == 1 and header.format in _COPIED:
        file = stem.with_name(stem.name + _COPIED[header.format])
        file.write_bytes(content)
    else:
        file = stem.with_name(stem.name + ".png")
        image.save(file)
    return file
