"""CPU time of a decoder layer's attention: `CpuAttention` against PyTorch's SDPA and products, in one run.

    python benchmarks/attention.py [--requests 16] [--beams 3] [--dtype bfloat16] [--threads 2]

Each way attends to 12 layers of separate memory, more than caches hold, with the sizes of Florence-2-large;
rounds take turns. In all ways, beams are query rows over their request's single copy of the keys. `read` is
the time in which PyTorch finds the maximum of the same bytes: a lower bound for reading them once. `mixed` is
the decoder's two attentions between linear layers, as in a step, to show the interaction of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from command import Cost, medians, now, parser_of, since
from einops import rearrange
from torch import Tensor

from florence.model.kernels.cpu.attention import CpuAttention

LAYERS, HEADS, HEAD_DIM, ENCODED, GENERATED = 12, 16, 64, 590, 100
ROUNDS = 9


@dataclass(frozen=True)
class Work:
    """The inputs of a decoder step's attention."""

    queries: Tensor  # [requests * beams, heads * head_dim]
    cross: list[tuple[Tensor, Tensor]]  # layers x (keys, values): [requests, heads, encoded, head_dim]
    own: list[tuple[Tensor, Tensor]]  # the same, [requests * beams, heads, generated, head_dim]
    linear: list[Tensor]  # layers x [d_model, d_model]
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    sources: Tensor  # [requests * beams, generated]: beams diverge about every ten positions
    own_lengths: Tensor
    visible: Tensor  # [requests, 1, beams, generated * beams]: the sources as a mask
    beams: int


def make_work(requests: int, beams: int, dtype: torch.dtype) -> Work:
    """Random inputs."""
    torch.manual_seed(0)
    rows = requests * beams

    def pool(count: int, room: int) -> list[tuple[Tensor, Tensor]]:
        shape = (2, count, HEADS, room, HEAD_DIM)
        return [tuple(torch.randn(shape, dtype=torch.float32).to(dtype)) for _ in range(LAYERS)]

    parted = torch.rand(requests, GENERATED) < 0.1
    sources = torch.arange(rows).view(requests, beams, 1).expand(-1, -1, GENERATED).clone()
    for place in range(GENERATED - 1, 0, -1):
        parents = torch.where(
            parted[:, place, None], torch.randint(beams, (requests, beams)), torch.arange(beams)
        )
        now = sources[:, :, place] % beams
        sources[:, :, place - 1] = torch.arange(requests)[:, None] * beams + parents.gather(1, now)
    own_lengths = torch.full((rows,), GENERATED, dtype=torch.int32)
    visible = F.one_hot(sources % beams, beams).bool().view(requests, 1, beams, -1)
    return Work(
        torch.randn(rows, HEADS * HEAD_DIM).to(dtype),
        pool(requests, ENCODED),
        pool(rows, GENERATED),
        [torch.randn(HEADS * HEAD_DIM, HEADS * HEAD_DIM).div(32).to(dtype) for _ in range(LAYERS)],
        torch.arange(requests, dtype=torch.int32),
        torch.arange(requests + 1, dtype=torch.int32) * beams,
        torch.full((requests,), ENCODED, dtype=torch.int32),
        sources.view(rows, GENERATED).int(),
        own_lengths,
        visible,
        beams,
    )


def kernel_cross(work: Work, kernel: CpuAttention, layer: int) -> Tensor:
    """Cross-attention by the kernel."""
    return kernel.cross_attention(work.queries, *work.cross[layer], work.slots, work.starts, work.lengths)


def kernel_own(work: Work, kernel: CpuAttention, layer: int) -> Tensor:
    """Self-attention by the kernel."""
    return kernel.self_attention(work.queries, *work.own[layer], work.sources, work.own_lengths)


def split_heads(rows: Tensor, beams: int) -> Tensor:
    """Rows as [requests, heads, beams, dim]."""
    return rearrange(
        rows, "(requests beams) (heads dim) -> requests heads beams dim", beams=beams, heads=HEADS
    )


def sdpa_cross(work: Work, layer: int) -> Tensor:
    """Cross-attention by PyTorch's SDPA."""
    mixed = F.scaled_dot_product_attention(split_heads(work.queries, work.beams), *work.cross[layer])
    return rearrange(mixed, "requests heads beams dim -> (requests beams) (heads dim)")


def products_cross(work: Work, layer: int) -> Tensor:
    """Cross-attention by products and softmax."""
    keys, values = work.cross[layer]
    scores = split_heads(work.queries, work.beams) @ keys.transpose(2, 3) * HEAD_DIM**-0.5
    mixed = scores.float().softmax(dim=-1).to(values.dtype) @ values
    return rearrange(mixed, "requests heads beams dim -> (requests beams) (heads dim)")


def sdpa_own(work: Work, layer: int) -> Tensor:
    """Self-attention over the keys of all beams of a request, as if they were contiguous, with those of other
    beams masked."""
    keys, values = (pool.view(-1, HEADS, work.beams * GENERATED, HEAD_DIM) for pool in work.own[layer])
    mixed = F.scaled_dot_product_attention(
        split_heads(work.queries, work.beams), keys, values, attn_mask=work.visible
    )
    return rearrange(mixed, "requests heads beams dim -> (requests beams) (heads dim)")


def read(pools: list[tuple[Tensor, Tensor]], layer: int) -> None:
    """Read all bytes of a layer's memory."""
    for pool in pools[layer]:
        pool.view(torch.int32).max()


def mixed(work: Work, attend: Callable[[int], Tensor], layer: int) -> None:
    """A linear layer, cross-attention, and two more linear layers."""
    rows = F.linear(work.queries, work.linear[layer])
    rows = F.linear(attend(layer) + rows, work.linear[layer])
    F.linear(rows, work.linear[layer])


def measure(ways: dict[str, Callable[[int], object]]) -> dict[str, Cost]:
    """(CPU, wall) milliseconds of a layer: medians of rounds in turns."""
    times: dict[str, list[Cost]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, run in ways.items():
            began = now()
            for layer in range(LAYERS):
                run(layer)
            spent = since(began)
            if turn:
                times[name].append(spent)
    found = {name: medians(spent) for name, spent in times.items()}
    return {name: (cpu / LAYERS * 1e3, wall / LAYERS * 1e3) for name, (cpu, wall) in found.items()}


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    started = time.perf_counter()
    kernel = CpuAttention(dtype, HEAD_DIM, None)
    compiled = time.perf_counter() - started
    work = make_work(arguments.requests, arguments.beams, dtype)
    print(
        f"{arguments.requests} requests x {arguments.beams} beams, {ENCODED} encoded and "
        f"{GENERATED} generated tokens,\n{HEADS} heads x {HEAD_DIM}, "
        f"{arguments.dtype}, {arguments.threads} threads; kernel compiled in {compiled:.1f} s"
    )
    results = measure(
        {
            "cross: kernel": lambda layer: kernel_cross(work, kernel, layer),
            "cross: SDPA": lambda layer: sdpa_cross(work, layer),
            "cross: products": lambda layer: products_cross(work, layer),
            "cross: read": lambda layer: read(work.cross, layer),
            "own: kernel": lambda layer: kernel_own(work, kernel, layer),
            "own: SDPA": lambda layer: sdpa_own(work, layer),
            "own: read": lambda layer: read(work.own, layer),
            "linear alone": lambda layer: mixed(work, lambda _: work.queries, layer),
            "linear and kernel": lambda layer: mixed(
                work, lambda layer: kernel_cross(work, kernel, layer), layer
            ),
        }
    )
    for name, (cpu, wall) in results.items():
        print(f"{name:18} {cpu:7.2f} ms CPU {wall:7.2f} ms wall, a layer")


if __name__ == "__main__":
    main()
