"""Draws pictures with their truth: `python -m florence.demo.draw --out DIR --seed N --count M`.

Writes scene_00.png (or .jpg) and so on, scene_annotations.json (COCO's instances), scene_captions.json
(COCO's captions) and scene_questions.json (all tasks with right answers); --name replaces `scene`. With
--tasks also COCO files of single tasks' questions, for `florence evaluate`, and all pictures as PNG. More
than six things need a smaller --scale; the captions of such a crowd may hold a run of three tokens twice,
which Florence-2 does not write unless `no_repeat_ngram_size` is 0. Knows nothing about any model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from florence.demo.world.coco import coco_captions, coco_instances
from florence.demo.world.coco_tasks import coco_tasks
from florence.demo.world.drawing import held_out
from florence.demo.world.ground_truth import Question
from florence.demo.world.scenes import MAX_CROWDED, MAX_THINGS, Limits, Scene


def draw(
    out: Path, seed: int, count: int, limits: Limits, name: str = "scene", *, tasks: bool = False
) -> None:
    """Draw held-out scenes 0 to `count` - 1 of a seed into a directory. `tasks`: see --tasks."""
    out.mkdir(parents=True, exist_ok=True)
    scenes: list[tuple[str, Scene, list[Question]]] = []
    asked: dict[str, list[dict[str, Any]]] = {}
    for index, (scene, image, questions) in enumerate(held_out(seed, count, limits)):
        file_name = f"{name}_{index:02d}.{'png' if tasks or scene.jpeg_quality is None else 'jpg'}"
        # The pixels already have JPEG noise, so save with high quality.
        image.save(out / file_name, quality=95)
        scenes.append((file_name, scene, questions))
        asked[file_name] = [asdict(question) for question in questions]
    named = [(file_name, scene) for file_name, scene, _ in scenes]
    files = {"annotations": coco_instances(named), "captions": coco_captions(named), "questions": asked}
    files |= coco_tasks(scenes) if tasks else {}
    for kind, content in files.items():
        (out / f"{name}_{kind}.json").write_text(json.dumps(content, indent=1) + "\n")


def command_parser(description: str | None, count: int) -> argparse.ArgumentParser:
    """The options that select scenes; `count`: the default of --count."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=count, help="scenes")
    parser.add_argument("--things", type=int, nargs=2, default=(1, 4), metavar=("MIN", "MAX"))
    return parser


def read_things(parser: argparse.ArgumentParser, arguments: argparse.Namespace, room: int) -> tuple[int, int]:
    """The minimum and maximum number of things in a scene; invalid values end the command."""
    min_things, max_things = arguments.things
    if not 1 <= min_things <= max_things <= room:
        parser.error(f"--things must lie between 1 and {room}, the lesser first")
    return min_things, max_things


def main() -> None:
    """The command."""
    parser = command_parser(__doc__, count=8)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="scene", help="how the files' names begin")
    parser.add_argument(
        "--side", type=int, nargs=2, default=(160, 320), help="square root of the area, minimum and maximum"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of things over the usual")
    parser.add_argument(
        "--tasks", action="store_true", help="also COCO files of single tasks' questions, and PNG alone"
    )
    arguments = parser.parse_args()
    if not 0.1 <= arguments.scale <= 1:
        parser.error("--scale must lie between 0.1 and 1")
    things = read_things(parser, arguments, MAX_THINGS if arguments.scale == 1 else MAX_CROWDED)
    limits = Limits(things=things, side=tuple(arguments.side), scale=arguments.scale)
    draw(arguments.out, arguments.seed, arguments.count, limits, arguments.name, tasks=arguments.tasks)


if __name__ == "__main__":
    main()
