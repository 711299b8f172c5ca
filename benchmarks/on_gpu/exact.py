"""Check the answers on this card: against `transformers.generate` in float32, alone against in a batch, and
other dtypes against float32."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from closed_loop import options
from closed_loop import requests as random_requests
from exactness import Theirs, generate_alone, requests
from logits import apart, states_of
from random_models import convert, decide, make_native
from torch.nn.attention import SDPBackend

from florence.engine.loop import Engine
from florence.engine.request import Generation, Request
from florence.model.florence2 import Florence2Model
from florence.runtime.futures import generate
from on_gpu.bench import BACKENDS, Bench, attend, forget
from on_gpu.sections import Add

PATIENCE_S = 90.0  # the first answer of a size and dtype waits until its kernels are compiled


def smoke(bench: Bench, add: Add) -> None:
    """Capture everything once at tiny size, and compare each attention backend with the plain one."""
    tiny = replace(bench, size="tiny")
    model = tiny.load()
    asked = random_requests("tiny", 8, 6)
    engine = tiny.engine(model, 4)
    answers = answer_all(engine, [*asked, *(replace(each, options=options(8, beams=1)) for each in asked)])
    engine.close()
    add("answers of the tiny model", len(answers))
    add("attention", attention_backends(bench))


def attention_backends(bench: Bench) -> dict[str, Any]:
    """The largest difference of each backend from the plain attention, or its error."""
    dice = torch.Generator(bench.device).manual_seed(0)
    found: dict[str, Any] = {}
    queries, keys, values = (
        torch.randn(2, 4, length, 64, generator=dice, device=bench.device, dtype=bench.dtype)
        for length in (3, 640, 640)
    )
    mask = (torch.arange(640, device=bench.device) < 589)[None, None, None].expand(2, 1, 3, 640)
    plain = attend(SDPBackend.MATH, queries.float(), keys.float(), values.float(), mask)
    for backend in BACKENDS:
        try:
            mixed = attend(backend, queries, keys, values, mask)
            found[backend.name] = float((mixed.float() - plain).abs().max())
        except RuntimeError as error:
            found[backend.name] = str(error).splitlines()[0]
    return found


def exactness(bench: Bench, add: Add) -> None:
    """Compare ids of a batch with `transformers.generate` one by one, in float32 on the same card.

    The served dtype is compared alone, in a batch, and with float32.
    """
    for size, count in (("tiny", 24), ("base", 12)) if bench.size != "tiny" else (("tiny", 6),):
        native = make_native(size, torch.float32)
        decide(native)
        asked = [request for _, request in requests(size, 20, (1, 3, 5), 0)][:count]
        exact = replace(bench, size=size, dtype=torch.float32)
        model = convert(native, bench.device, torch.float32)
        native.to(bench.device)
        theirs = [generate_alone(native, request) for request in asked]
        ours, changed = crowd(exact, model, asked)
        add(f"{size}, float32", agreement(ours, theirs) | {"changed when asked again": changed})
        add(f"{size}, {bench.dtype}", served(replace(bench, size=size), native, asked, ours))
        del native, model
        forget()


def served(
    bench: Bench, native: Any, asked: Sequence[Request], exact: Sequence[Generation]
) -> dict[str, Any]:
    """Shares of equal answers of the served dtype."""
    model = convert(native.cpu(), bench.device, bench.dtype)
    together, changed = crowd(bench, model, asked)
    engine = bench.engine(model, slots_of(bench))
    alone = [answer_all(engine, [request])[0] for request in asked]
    engine.close()

    def same(one: Sequence[Generation], other: Sequence[Generation]) -> str:
        equal = sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True))
        return f"{equal} of {len(asked)}"

    return {
        "alone as in a crowd": same(alone, together),
        "alone as in float32": same(alone, exact),
        "in a crowd as in float32": same(together, exact),
        "changed when asked again": changed,
    }


def crowd(bench: Bench, model: Florence2Model, asked: Sequence[Request]) -> tuple[list[Generation], int]:
    """Answer all requests together, twice, so that the second round replays what the first captured; a step
    runs between all parts of encodes.

    Returns the second answers, and the number of those that differ from the first.
    """
    engine = bench.engine(model, slots_of(bench), encode_budget_ms=0.1)
    first, second = answer_all(engine, asked), answer_all(engine, asked)
    engine.close()
    return second, sum(a.token_ids != b.token_ids for a, b in zip(first, second, strict=True))


def slots_of(bench: Bench) -> int:
    """The slots of a compared engine: fewer than requests, so that some wait."""
    return 16 if bench.on_gpu else bench.slots


def answer_all(engine: Engine, asked: Sequence[Request]) -> list[Generation]:
    """Answer all requests together."""
    futures: list[Future[Generation]] = [generate(engine, request) for request in asked]
    return [future.result(PATIENCE_S) for future in futures]


def agreement(ours: Sequence[Generation], theirs: Sequence[Theirs]) -> dict[str, Any]:
    """The number of answers with the same ids, and the distance of each different pair."""
    mismatches = []
    apart = 0.0
    for our, their in zip(ours, theirs, strict=True):
        if our.token_ids == their.token_ids:
            pairs = zip(our.token_logprobs, their.token_logprobs, strict=True)
            apart = max([apart, *(abs(a - b) for a, b in pairs)])
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(our.token_ids, their.token_ids, strict=False)) if a != b), -1
        )
        gap = sum(our.token_logprobs) - sum(their.token_logprobs)
        mismatches.append(
            {"first different token": at, "ours above theirs, log-probability": gap,
             "scores": [our.score, their.score]}
        )  # fmt: skip
    gaps = [gap for their in theirs for gap in their.gaps]
    return {
        "requests": len(ours),
        "same ids": len(ours) - len(mismatches),
        "mismatches": mismatches,
        "log-probabilities of equal answers differ at most": apart,
        "least gap of best and second, greedy": min(gaps, default=None),
        "different answers": len({their.token_ids for their in theirs}),
    }


@torch.inference_mode()
def drift(bench: Bench, add: Add) -> None:
    """Differences of picture tokens, encoder states and logits in lower precision from float32, with the same
    weights; see `logits.py`."""
    exact = states_of(bench.load(torch.float32), bench.size)
    forget()
    for dtype in (torch.bfloat16, torch.float16):
        model = bench.model if dtype is bench.dtype else bench.load(dtype)
        add(str(dtype), apart(states_of(model, bench.size), exact))
        forget()
    add("fp8", apart(states_of(bench.load_fp8(), bench.size), exact))
