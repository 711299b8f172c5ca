"""The choices of `Backend.for_device`; answers do not depend on them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import load_float32
from PIL import Image
from tiny import make_native
from torch import nn

from florence import Florence2
from florence.engine.config import EngineConfig, KernelChoice
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis
from florence.engine.device.memory import DeviceMemory
from florence.engine.device.runner import Runner
from florence.engine.request import GenerationOptions, Request
from florence.engine.sequence import SequenceState
from florence.model.adapters.grouped import GroupedAdapters
from florence.model.attention import DENSE
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.linear import Conv2d, Linear, pack

ROOT = Path(__file__).resolve().parents[1]
CPU, HEAD_DIM = torch.device("cpu"), 12

needs_kernels = pytest.mark.skipif(not available(torch.float32), reason="no kernels for this machine")


@needs_kernels
def test_kernels_for_cpus_are_used_unless_they_are_off() -> None:
    """CPU kernels are used unless they are off; a dtype or head size without a kernel gets PyTorch's
    attention."""
    assert not Backend.for_device(CPU, torch.float32, HEAD_DIM).attention.masked
    off = EngineConfig(cpu_kernels="off")
    for dtype, head_dim, config in (
        (torch.float32, HEAD_DIM, off),
        (torch.float64, HEAD_DIM, EngineConfig()),
        (torch.float32, 7, EngineConfig()),
    ):
        backend = Backend.for_device(CPU, dtype, head_dim, config=config)
        assert backend.attention is DENSE
        assert type(backend.memory) is DeviceMemory
        assert backend.capturer is None
        assert not backend.delayed_readback


@needs_kernels
@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_products_for_cpus_are_the_kernels_unless_they_are_off(kernels: KernelChoice) -> None:
    """Layers are packed, and adapters beside them have the kernel, unless the CPU kernels are off."""
    layers = nn.Sequential(Linear(32, 32)).requires_grad_(False)
    products = Backend.for_device(
        CPU, torch.float32, HEAD_DIM, config=EngineConfig(cpu_kernels=kernels)
    ).products
    products.pack(layers)
    bank = products.make_bank(layers, 1)
    assert isinstance(bank, GroupedAdapters)
    assert (bank.kernel is None) is (layers[0].packed is None) is (kernels == "off")


def test_only_the_seam_asks_for_the_kind_of_device() -> None:
    """The choices, the process's settings, the layout of loaded weights and the defaults of settings depend
    on the kind of device; no algorithm asks for it."""
    asking = {
        path.relative_to(ROOT / "florence").as_posix()
        for path in (ROOT / "florence").rglob("*.py")
        if re.search(r"\bis_cuda\b|device(\(.*\))?\.type\b", path.read_text(encoding="utf-8"))
    }
    assert asking == {
        "engine/device/backend.py",
        "model/devices.py",
        "checkpoint/weights.py",
        *("runtime/configured.py", "runtime/load_options.py"),  # defaults of settings
        "demo/train.py",
    }


def random_request(dice: random.Random) -> Request:
    """A request with a random picture, prompt, number of beams, length and options."""
    least = dice.choice([0, 0, 7])
    options = GenerationOptions(
        num_beams=dice.randint(1, 8),
        max_new_tokens=dice.randint(max(1, least), 24),
        min_new_tokens=least,
        no_repeat_ngram_size=dice.choice([0, 2, 3]),
        early_stopping=dice.choice([True, False, "never"]),
        length_penalty=dice.choice([0.0, 1.0, 2.0]),
    )
    pixels = np.random.default_rng(dice.randint(0, 5)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    prompt = (0, *(dice.randint(3, 1000) for _ in range(dice.randint(1, 30))), 2)
    return Request(pixels, prompt, options)


def decode_crowd(runner: Runner, asked: Sequence[Request], dice: random.Random) -> list[list[int]]:
    """The token ids of each request; a few at a time join, and each leaves at its end."""
    coming, active = list(enumerate(asked)), dict[SequenceState, int]()
    answers: dict[int, list[int]] = {}
    while coming or active:
        fitting = runner.slots.fits(request.options.num_beams for _, request in coming)
        if fitting and (not active or dice.random() < 0.4):
            joining = coming[: min(fitting, dice.randint(1, 4))]
            coming = coming[len(joining) :]
            sequences = runner.encode([request for _, request in joining])
            active |= zip(sequences, (number for number, _ in joining), strict=True)
        for sequence, outcome in runner.step(list(active)):
            assert isinstance(outcome, Hypothesis)
            answers[active.pop(sequence)] = outcome.token_ids
    return [answers[number] for number in range(len(asked))]


@needs_kernels
@torch.inference_mode()
def test_token_ids_are_the_same_with_and_without_kernels_for_cpus(tmp_path: Path) -> None:
    """In float32 the kernels for attention and products give the same ids as PyTorch, for random batches."""
    vocab = make_native(tmp_path).config.text_config.vocab_size
    models: dict[str, Florence2Model] = {kind: load_float32(tmp_path, vocab) for kind in ("auto", "off")}
    assert pack(models["auto"])
    asked = [random_request(random.Random(seed)) for seed in range(40)]
    answers = {}
    for kind, model in models.items():
        backend = Backend.for_device(CPU, model.dtype, HEAD_DIM, config=EngineConfig(cpu_kernels=kind))  # type: ignore[arg-type]
        answers[kind] = decode_crowd(Runner(model, 6, backend=backend), asked, random.Random(1))
    assert answers["auto"] == answers["off"]
    assert len(set(map(tuple, answers["off"]))) > 20


def test_a_model_that_is_loaded_without_kernels_for_cpus_packs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the CPU kernels off no weight is packed, and the answer is the same."""
    answers = []
    with Image.open(ROOT / "data" / "scene_02.png") as picture:
        with Florence2.load("demo", device="cpu", dtype="float32") as model:
            answers.append(model.run(picture, "<CAPTION>").text)

        def refuse(self: Linear | Conv2d, *given: object) -> None:
            raise AssertionError("a weight is packed")

        monkeypatch.setattr(Linear, "use", refuse)
        monkeypatch.setattr(Conv2d, "pack", refuse)
        with Florence2.load(
            "demo", device="cpu", dtype="float32", config=EngineConfig(cpu_kernels="off")
        ) as model:
            answers.append(model.run(picture, "<CAPTION>").text)
    assert answers[0] == answers[1]
