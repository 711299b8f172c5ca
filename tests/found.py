"""Results of each kind, to be drawn and exported."""

from __future__ import annotations

from typing import Any

from florence.types.answer import ImageSize, TaskAnswer, Timings, Usage
from florence.types.results import Detection, Detections, Instance, OcrRegion, OcrRegions, Segmentation

SIZE = (240, 160)
BOXES = Detections(
    detections=[
        Detection(label="car", box=(40, 60, 120, 140), score=0.93),
        Detection(label="", box=(230.5, 150.0, 150.5, 90.0), score=None),  # corners the other way round
    ]
)
QUADS = OcrRegions(regions=[OcrRegion(text="EXIT", quad=(50, 50, 150, 60, 148, 90, 48, 80), score=0.5)])
POLYGONS = Segmentation(
    instances=[
        Instance(label="leaf", polygons=[[40, 60, 120, 60, 120, 140, 40, 140], [150, 50, 200, 50, 200, 100]]),
        Instance(label="nothing", polygons=[]),
    ]
)
PLACES = {"boxes": BOXES, "quads": QUADS, "polygons": POLYGONS}


def answer(result: Any) -> TaskAnswer[Any]:
    """An answer with this result."""
    return TaskAnswer[Any](
        task="<OD>",
        result=result,
        image_size=ImageSize(width=SIZE[0], height=SIZE[1]),
        finish_reason="stop",
        usage=Usage(picture_tokens=1, prompt_tokens=2, generated_tokens=3),
        timings=Timings(queue_s=0, encode_s=0, decode_s=0, total_s=0),
        checkpoint="fake",
    )
