"""Compare several ways to compute one thing, at the model's sizes, to find the fastest on this card.

Each variant fails independently: its error stands in place of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from ledger.own import kernel_table
from random_models import SIDE, SIZES, VOCAB
from torch import Tensor

from florence.engine.device.backend import products_for
from florence.model.encoding import PLAIN, CompiledEncode, EncodeBackend
from florence.model.kernels.fp8 import Fp8Weight, quantize_rows
from on_gpu.bench import BACKENDS, EngineBench, attend, forget
from on_gpu.sections import Add

Work = Callable[[], object]
BEAMS, PICTURES, ENCODER_LENGTH = 3, 16, 640


@torch.inference_mode()
def variants(bench: EngineBench, add: Add) -> None:
    """Measure all variants, the quick ones first."""
    for part in (head, depthwise, attention, scaled, own, batches, encode_in_fp8, compiled):
        try:
            part(bench, add)
        except Exception as error:  # noqa: BLE001  (the error is its figure, and the others continue)
            add(f"{part.__name__}: failed", repr(error)[:500])
        forget()


def timed(bench: EngineBench, ways: Mapping[str, Work], repeats: int = 10) -> dict[str, Any]:
    """Milliseconds of each way, or its error."""
    found: dict[str, Any] = {}
    for name, work in ways.items():
        try:
            found[name] = round(bench.device_ms(work, repeats), 4)
        except Exception as error:  # noqa: BLE001
            found[name] = repr(error).splitlines()[0][:200]
    return found


def randn(bench: EngineBench, *shape: int) -> Tensor:
    """Random numbers on the device in the served dtype."""
    return torch.randn(*shape, device=bench.device, dtype=bench.dtype)


def head(bench: EngineBench, add: Add) -> None:
    """Measure the head's product: with its odd number of rows, with a multiple of 64, and with
    float32 sums."""
    d_model = SIZES[bench.size][0]
    states = randn(bench, bench.slots * BEAMS, d_model)
    plain, padded = randn(bench, VOCAB, d_model), randn(bench, -(-VOCAB // 64) * 64, d_model)
    add(
        "head",
        timed(
            bench,
            {
                f"{VOCAB} rows, then float32": lambda: (states @ plain.t()).float(),
                f"{len(padded)} rows, then float32": lambda: (states @ padded.t()).float(),
                f"{VOCAB} rows, float32 sums": lambda: torch.mm(states, plain.t(), out_dtype=torch.float32),
                f"{len(padded)} rows, float32 sums": lambda: torch.mm(
                    states, padded.t(), out_dtype=torch.float32
                ),
            },
        ),
    )


def pictures_of(bench: EngineBench, count: int) -> Tensor:
    """Random pixels of `count` pictures."""
    side = SIDE[bench.size]
    return torch.zeros(count, side, side, 3, dtype=torch.uint8).random_(0, 256).to(bench.device)


def stages(bench: EngineBench) -> list[tuple[int, int]]:
    """The dimension and the cells per side of each stage of the tower."""
    return [(dim, SIDE[bench.size] // (4 * 2**stage)) for stage, dim in enumerate(SIZES[bench.size][4])]


def depthwise(bench: EngineBench, add: Add) -> None:
    """Measure the tower's depthwise convolution, channels last: cuDNN's and PyTorch's own."""
    for dim, side in stages(bench):
        cells = randn(bench, PICTURES, side, side, dim).permute(0, 3, 1, 2)
        filters = randn(bench, dim, 1, 3, 3).contiguous(memory_format=torch.channels_last)

        def run(allowed: bool, cells: Tensor = cells, filters: Tensor = filters) -> Tensor:
            torch.backends.cudnn.enabled = allowed  # `flags` would touch TF32's old switches too
            try:
                return F.conv2d(cells, filters, padding=1, groups=len(filters))
            finally:
                torch.backends.cudnn.enabled = True

        ways = {
            "cuDNN": lambda run=run: run(True),
            "PyTorch's": lambda run=run: run(False),
            "a copy, for comparison": lambda cells=cells: cells.clone(),
        }
        add(f"depthwise, {dim} x {side} x {side}", timed(bench, ways))


def attention(bench: EngineBench, add: Add) -> None:
    """Measure each backend on the shapes of the tower's windows, the encoder, and a step's
    cross-attention."""
    d_model, _, heads, _, _ = SIZES[bench.size]
    pictures = PICTURES if bench.on_gpu else 1
    shapes = {
        f"windows of {dim}": ((pictures * max(1, (side // 12) ** 2), dim // 32 or 1, 144, 32), 144, False)
        for dim, side in stages(bench)
    }
    wide = d_model // heads
    shapes["encoder"] = ((pictures, heads, ENCODER_LENGTH, wide), ENCODER_LENGTH, True)
    shapes["cross"] = ((bench.slots, heads, BEAMS, wide), ENCODER_LENGTH, True)
    for name, ((rows, count, length, width), keys, masked) in shapes.items():
        queries = randn(bench, rows, length, count, width).transpose(1, 2)
        memory = randn(bench, rows, keys, count, width).transpose(1, 2)
        mask = (torch.arange(keys, device=bench.device) < keys - 51).expand(rows, 1, 1, keys)
        tensors = queries, memory, memory, mask if masked else None
        ways = {each.name: partial(attend, each, *tensors) for each in BACKENDS}
        add(f"attention, {name}", timed(bench, ways))


def scaled(bench: EngineBench, add: Add) -> None:
    """Measure products of the tower's third stage in fp8 (e4m3, a scale for each row) and in the served
    dtype.

    In fp8: the product alone, with less exact sums, and with the rounding of its input, as in a layer.
    """
    dim, side = stages(bench)[2]
    rows = PICTURES * side * side
    products = products_for(bench.device, bench.dtype).fp8()
    for inputs, outputs in ((dim, 3 * dim), (dim, 4 * dim), (4 * dim, dim)):
        states, weight = randn(bench, rows, inputs), randn(bench, outputs, inputs)
        low, low_weight = states.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        ones = torch.ones(rows, 1, device=bench.device), torch.ones(outputs, 1, device=bench.device)
        layer = Fp8Weight(weight, None, products)
        ways: dict[str, Work] = {
            str(bench.dtype): lambda a=states, b=weight: a @ b.t(),  # type: ignore[misc]
            "fp8": lambda a=low, b=low_weight, s=ones: products.multiply(a, s[0], b, s[1], None),  # type: ignore[misc]
            "fp8, fast sums": lambda a=low, b=low_weight, s=ones: torch._scaled_mm(  # type: ignore[misc]
                a, b.t(), scale_a=s[0], scale_b=s[1].t(), out_dtype=torch.bfloat16, use_fast_accum=True
            ),
            "rows to fp8, PyTorch": lambda a=states: quantize_rows(a),  # type: ignore[misc]
            "fp8, a layer": lambda a=states, layer=layer: layer.product(a),  # type: ignore[misc]
        }
        add(f"product {rows} x {inputs} -> {outputs}", timed(bench, ways))


def own(bench: EngineBench, add: Add) -> None:
    """Measure each kernel of the project, its plain reference and the code that runs without it."""
    for kernel in kernel_table():
        try:
            case = kernel.case(bench.device, bench.dtype, real=bench.on_gpu)
            ways: dict[str, Work] = {"kernel": case.kernel, "twin": case.twin}
            if case.dense is not None:
                ways["dense"] = case.dense
            figures = timed(bench, ways)
            figures["furthest from the twin"] = furthest(case.kernel(), case.twin())
        except Exception as error:  # noqa: BLE001
            figures = {"failed": repr(error)[:300]}
        add(f"kernel {kernel.title}", figures)


def furthest(found: Any, expected: Any) -> float:
    """The largest norm of a difference, relative to the expected values."""
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    worst = 0.0
    for one, other in pairs:
        one, other = one.double(), other.double()
        worst = max(worst, float((one - other).norm() / other.norm().clamp(min=1e-30)))
    return worst


def batches(bench: EngineBench, add: Add) -> None:
    """Measure the tower without graphs in larger batches."""
    for count in (4, 8, 16, 32) if bench.on_gpu else (2,):
        pixels = pictures_of(bench, count)
        work = {"ms": lambda pixels=pixels: bench.model.encode_images(pixels, bench.served_encode)}
        found = timed(bench, work, 3)["ms"]
        add(f"tower, {count} at once, ms a picture", found / count if isinstance(found, float) else found)


def encode_in_fp8(bench: EngineBench, add: Add) -> None:
    """Measure tower and encoder without graphs, in the served dtype and with products in fp8."""
    count = PICTURES if bench.on_gpu else 2
    pixels = pictures_of(bench, count)
    prompt = torch.tensor([[0, 100, 101, 2]] * count, device=bench.device)
    ways = {
        name: lambda model=model: model.encode(model.encode_images(pixels), prompt)  # type: ignore[misc]
        for name, model in ((str(bench.dtype), bench.model), ("fp8", bench.load_fp8()))
    }
    add(f"encode of {count}, ms", timed(bench, ways, 3))


def compiled(bench: EngineBench, add: Add) -> None:
    """Measure both blocks of the tower's stages, and the whole tower: by PyTorch's operations, by the
    project's kernels where they are served, and by `torch.compile`.

    This comes last, since compiling takes long.
    """
    tower: Any = bench.model.vision.tower
    pictures = PICTURES if bench.on_gpu else 1
    backends: dict[str, EncodeBackend] = {"plain": PLAIN, "served": bench.served_encode}
    if bench.on_gpu:
        backends["compiled"] = CompiledEncode()

    def both(backend: EncodeBackend, blocks: Any, cells: Tensor) -> Tensor:
        return backend.block(blocks.channel_block, backend.block(blocks.spatial_block, cells))

    for stage in (2, 0, 1, 3):
        dim, side = stages(bench)[stage]
        cells, blocks = randn(bench, pictures, side, side, dim), tower.stages[stage].blocks[0]
        ways: dict[str, Work] = {
            name: partial(both, backend, blocks, cells) for name, backend in backends.items()
        }
        add(f"blocks of stage {stage + 1}, ms", timed(bench, ways))
    pixels = pictures_of(bench, pictures)
    ways = {name: partial(bench.model.encode_images, pixels, backend) for name, backend in backends.items()}
    add("tower, ms", timed(bench, ways, 3))
