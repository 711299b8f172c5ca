"""Exports answers as predictions for Label Studio: tasks to import, and the labelling interface that shows
them.

The format is what Label Studio documents for pre-annotated data, with coordinates in percent of the picture.
Knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from florence.export.annotation import Annotation
from florence.export.coco import category_name
from florence.export.geometry import corners_of
from florence.export.labelled import Labelled


def write_label_studio(pictures: Iterable[Labelled], labels: Iterable[str], folder: Path) -> None:
    """`tasks.json` and `label_config.xml` in the folder. A picture's URL is its name, unless it is a local
    file: then the URL is below /data/local-files/, where Label Studio serves local files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_config.xml").write_text(label_config(labels), encoding="utf-8")
    with (folder / "tasks.json").open("w", encoding="utf-8") as file:
        file.write("[")
        for number, picture in enumerate(pictures):
            file.write(",\n" if number else "\n")
            json.dump(label_studio_task(picture), file, ensure_ascii=False)
        file.write("\n]\n")


def label_studio_task(picture: Labelled) -> dict[str, Any]:
    """The task for one picture, with its prediction."""
    results: list[dict[str, Any]] = []
    for number, each in enumerate(picture.places):
        results += _results(f"r{number}", each, picture.size)
    if picture.texts:
        text = {"text": list(picture.texts)}
        results.append(
            {"id": "caption", "type": "textarea", "from_name": "caption", "to_name": "image", "value": text}
        )
    prediction: dict[str, Any] = {"model_version": ", ".join(picture.models), "result": results}
    scores = [each.score for each in picture.places if each.score is not None]
    if scores:
        prediction["score"] = sum(scores) / len(scores)
    address = picture.name if "://" in picture.name else f"/data/local-files/?d={picture.name.lstrip('/')}"
    return {"data": {"image": address}, "predictions": [prediction]}


def label_config(labels: Iterable[str]) -> str:
    """The labelling interface (XML) for these labels."""
    named = "".join(f"\n    <Label value={quoteattr(label)}/>" for label in labels)
    return f"""<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image">{named}
  </RectangleLabels>
  <PolygonLabels name="polygon" toName="image">{named}
  </PolygonLabels>
  <TextArea name="transcription" toName="image" perRegion="true" editable="true"/>
  <TextArea name="caption" toName="image" editable="true"/>
</View>
"""


def _results(id: str, place: Annotation, size: tuple[int, int]) -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "to_name": "image",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
    }
    if place.score is not None:
        common["score"] = place.score
    label = category_name(place)
    if place.shape == "box":
        (x, y), (x2, y2) = _percent(place.bounds, size)
        box = {"x": x, "y": y, "width": x2 - x, "height": y2 - y, "rotation": 0, "rectanglelabels": [label]}
        return [{"id": id, "type": "rectanglelabels", "from_name": "box", "value": box, **common}]
    made: list[dict[str, Any]] = []
    for part, polygon in enumerate(place.polygons):
        value: Mapping[str, Any] = {"points": _percent(polygon, size), "polygonlabels": [label]}
        name = f"{id}p{part}" if part else id
        made.append({"id": name, "type": "polygonlabels", "from_name": "polygon", "value": value, **common})
    if place.category is not None:  # text that was read
        words = {**made[0]["value"], "text": [place.label]}
        made.append({"id": id, "type": "textarea", "from_name": "transcription", "value": words, **common})
    return made


def _percent(numbers: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    return [(100 * x / size[0], 100 * y / size[1]) for x, y in corners_of(numbers)]
