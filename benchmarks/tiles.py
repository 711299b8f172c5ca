"""Measure what tiles find that a whole picture misses, on the demo checkpoint's own drawings, and their cost.

`python benchmarks/tiles.py`: pages of 60 words, 24 to 40 pixels high, whole, with `tiles=auto` alone, and at
other scales; then scenes of 40 things. Each line gives the number of tiles, the shares found and right, and
the seconds. Knows the demo world and the library.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from command import parser_of
from PIL import Image

from florence import Florence2
from florence.answers.answer import Answer
from florence.demo.evaluation.tiles import Findings, tally
from florence.demo.world.drawing import draw_scene
from florence.demo.world.pages import MAX_WORD_WIDTH, make_page
from florence.demo.world.scenes import MAX_CROWDED, Limits, Scene, Split, Thing, make_scene, scene_rng
from florence.demo.world.typeface import Typeface
from florence.engine.config import EngineConfig

INPUT = 160  # input size of the demo checkpoint in pixels
CROWD = Limits((MAX_CROWDED, MAX_CROWDED), word_share=0.5, side=(1250, 1250), aspect=1.5, scale=0.26)
MOST = 1024  # limit for tiles and for waiting requests
MAX_OVERLAP = 0.9  # the limit of a request


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--count", type=int, default=5, help="pages, and scenes")
    parser.add_argument("--scales", type=float, nargs="*", default=[1, 1.75, 2, 3], help="of pages' tiles")
    parser.add_argument("--crowd-scales", type=float, nargs="*", default=[1, 2, 3], help="of scenes' tiles")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.2, 0.5], help="of scenes' tiles")
    arguments = parser.parse_args()
    config = EngineConfig.for_device("cpu", max_queue=MOST)
    with Florence2.load("demo", dtype="float32", config=config, max_tiles=MOST) as model:
        model.warm_up()
        pages = [draw(make_page, arguments.seed, index) for index in range(arguments.count)]
        print(f"{len(pages)} pages of 60 words, <OCR_WITH_REGION>")
        for tiles in ("off", "auto"):
            measure(model, pages, "<OCR_WITH_REGION>", lambda thing: thing.text, {"tiles": tiles})
        for scale in arguments.scales:
            cut = {"tiles": "auto", "tile_scale": scale, "tile_overlap": overlap_of(scale)}
            measure(model, pages, "<OCR_WITH_REGION>", lambda thing: thing.text, cut)
        scenes = [draw(crowd, arguments.seed, index) for index in range(arguments.count)]
        things = sum(len(scene.things) for scene, _ in scenes) / len(scenes)
        print(f"{len(scenes)} scenes of {things:.1f} things, <OD>")
        for tiles in ("off", "auto"):
            measure(model, scenes, "<OD>", lambda thing: thing.shape, {"tiles": tiles})
        for scale in arguments.crowd_scales:
            for overlap in arguments.overlaps:
                cut = {"tiles": "auto", "tile_scale": scale, "tile_overlap": overlap}
                measure(model, scenes, "<OD>", lambda thing: thing.shape, cut)


def overlap_of(scale: float) -> float:
    """The least overlap, to a hundredth, that contains the longest word; 0.5 if a tile does not."""
    share = math.ceil(100 * MAX_WORD_WIDTH / (scale * INPUT)) / 100
    return share if share <= MAX_OVERLAP else 0.5


def crowd(rng: Any, typeface: Typeface) -> Scene:
    """A scene with up to 40 things, as many as there is room for."""
    return make_scene(rng, typeface, CROWD)


def draw(make: Callable[[Any, Typeface], Scene], seed: int, index: int) -> tuple[Scene, Image.Image]:
    """A scene and its picture."""
    typeface = Typeface()
    scene = make(scene_rng(Split.HELD_OUT, seed, index), typeface)
    return scene, draw_scene(scene, typeface)


def measure(
    model: Florence2,
    drawn: Sequence[tuple[Scene, Image.Image]],
    task: str,
    label: Callable[[Thing], str],
    cut: dict[str, Any],
) -> None:
    """Ask about each picture in turn and print the result."""
    whole, tiles, tokens, began = Findings(), 0, 0, time.perf_counter()
    for scene, picture in drawn:
        answer: Answer = model.run(picture, task, **cut)
        tiles, tokens = tiles + answer.tiles, tokens + answer.usage.generated_tokens
        whole += tally(scene, answer.result, label)
    seconds = time.perf_counter() - began
    asked = ", ".join(f"{name.removeprefix('tile_')} {value}" for name, value in cut.items())
    print(
        f"{asked:42} {tiles / len(drawn):6.1f} tiles  found {whole.found / whole.things:.3f}"
        f"  right of these {whole.right / max(1, whole.found):.3f}  recall {whole.right / whole.things:.3f}"
        f"  precision {whole.right / max(1, whole.items):.3f}  twice {whole.twice}"
        f"  {tokens / len(drawn):7.0f} tokens  {seconds / len(drawn):6.2f} s a picture",
        flush=True,
    )


if __name__ == "__main__":
    main()
