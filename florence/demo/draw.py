"""Draws pictures with their truth: `python -m florence.demo.draw --out DIR --seed N --count M`.

Writes scene_00.png (or .jpg) and so on, scene_annotations.json (COCO's instances), scene_captions.json
(COCO's captions) and scene_questions.json (all tasks with right answers); --name says what stands in place of
`scene`. More things than six need a lesser --scale; the captions of such a crowd may hold a run of three
tokens twice, which Florence-2 does not write unless `no_repeat_ngram_size` is 0. Knows nothing about any
model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from florence.demo.training.batches import draw_lots
from florence.demo.world.coco import coco_captions, coco_instances
from florence.demo.world.drawing import draw_scene
from florence.demo.world.ground_truth import questions
from florence.demo.world.scenes import MOST_CROWDED, MOST_THINGS, Limits, Scene, Split, make_scene, scene_rng
from florence.demo.world.typeface import Typeface


def draw(out: Path, seed: int, count: int, limits: Limits, name: str = "scene") -> None:
    """Draws held-out scenes 0 to count - 1 of a seed into a directory."""
    typeface = Typeface()
    out.mkdir(parents=True, exist_ok=True)
    scenes: list[tuple[str, Scene]] = []
    asked: dict[str, list[dict[str, Any]]] = {}
    for index in range(count):
        rng = scene_rng(Split.HELD_OUT, seed, index)
        crowded = limits.things[1] > MOST_THINGS
        scene = make_scene(rng, typeface, limits) if crowded else draw_lots(rng, typeface, limits)
        file_name = f"{name}_{index:02d}.{'png' if scene.jpeg_quality is None else 'jpg'}"
        # The noise of a JPEG is in the pixels already: saved finely, it is not made twice.
        draw_scene(scene, typeface).save(out / file_name, quality=95)
        scenes.append((file_name, scene))
        asked[file_name] = [asdict(question) for question in questions(scene, rng)]
    _write(out / f"{name}_annotations.json", coco_instances(scenes))
    _write(out / f"{name}_captions.json", coco_captions(scenes))
    _write(out / f"{name}_questions.json", asked)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--name", default="scene", help="how the files' names begin")
    parser.add_argument("--things", type=int, nargs=2, default=(1, 4), metavar=("FEWEST", "MOST"))
    parser.add_argument(
        "--side", type=int, nargs=2, default=(160, 320), help="square root of the area, least and most"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of things over the usual")
    arguments = parser.parse_args()
    fewest, most = arguments.things
    if not 0.1 <= arguments.scale <= 1:
        parser.error("--scale must lie between 0.1 and 1")
    room = MOST_THINGS if arguments.scale == 1 else MOST_CROWDED
    if not 1 <= fewest <= most <= room:
        parser.error(f"--things must lie between 1 and {room}, the lesser first")
    limits = Limits(things=(fewest, most), side=tuple(arguments.side), scale=arguments.scale)
    draw(arguments.out, arguments.seed, arguments.count, limits, arguments.name)


if __name__ == "__main__":
    main()
