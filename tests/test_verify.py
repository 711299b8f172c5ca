"""`florence verify`: sound checkpoints pass, and each kind of fault shows in exit status and report.

transformers' side runs once for each checkpoint; faults are put into this package's side only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from adapters import ROBOFLOW, make_adapter
from goldens import Goldens
from layouts import DEMO
from peft import LoraConfig
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from florence.checkpoint import layout
from florence.checkpoint.adapter_config import AdapterConfig
from florence.engine.device.beams.search import BatchedAdvance
from florence.model import attention
from florence.model.florence2 import Florence2Model
from florence.runtime import loading
from florence.verification import ours, proof, trials
from florence.verification.checks import Rates
from florence.verification.proof import Proof
from florence.verification.theirs import GeneratedTokens, Transformers
from florence.verification.trials import Part, Trial

Verify = Callable[..., tuple[int, dict[str, Any], str]]
"""A function from arguments to exit status, JSON report and table."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models() -> dict[tuple[Any, ...], Any]:
    """transformers' models by checkpoint and adapter."""
    return {}


@pytest.fixture(scope="module")
def remembered() -> dict[tuple[str, str], GeneratedTokens]:
    """transformers' answers by checkpoint and trial."""
    return {}


@pytest.fixture
def verify(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    florence: Callable[..., tuple[int, str, str]],
    models: dict[tuple[Any, ...], Any],
    remembered: dict[tuple[str, str], GeneratedTokens],
) -> Verify:
    """The command on one picture, with an eighth of its trials, and transformers' models and answers
    cached. Speeds are measured only on request."""
    make, answer, read = trials.make_trials, Transformers.answer, proof.read_model

    def some(*arguments: Any) -> list[Trial]:
        asked = make(*arguments)
        return [trial for part in Part for trial in [each for each in asked if each.part is part][::8]]

    def remember(self: Transformers, trial: Trial) -> GeneratedTokens:
        weights = self.model.lm_head.weight.sum(), self.model.model.vision_tower.convs[0].conv.weight.shape
        key = repr(weights), repr((trial.picture.name, str(trial), trial.options))
        if key not in remembered:
            remembered[key] = answer(self, trial)
        return remembered[key]

    def read_once(*arguments: Any) -> Any:
        if arguments not in models:
            models[arguments] = read(*arguments)
        return deepcopy(models[arguments])

    monkeypatch.setattr(proof, "make_trials", some)
    monkeypatch.setattr(Transformers, "answer", remember)
    monkeypatch.setattr(proof, "read_model", read_once)
    # The command has no option that leaves speeds out, which take most of its time.
    monkeypatch.setattr(proof, "_TIMED_QUICK", 1)

    def run(model: object, *arguments: str, timed: bool = False) -> tuple[int, dict[str, Any], str]:
        if not timed:
            monkeypatch.setattr(Proof, "_rates", lambda *_: Rates(1.0, 1.0))
        file = tmp_path / "report.json"
        status, out, _ = florence(
            "verify", "--model", model, "--device", "cpu", "--quick", "--json", file, *arguments
        )
        return status, json.loads(file.read_text()), out

    return run


def faults(report: dict[str, Any]) -> set[str]:
    """The parts of the report that are faults."""
    return {line["part"] for line in report["lines"] if line["ok"] is False}


def test_the_demo_checkpoint_is_verified(verify: Verify) -> None:
    """The demo checkpoint, in transformers' layout and with bfloat16 too, has every line and no fault."""
    status, report, table = verify("demo", "--dtype", "bfloat16", timed=True)
    assert (status, report["verified"], faults(report)) == (0, True, set())
    parts = [line["part"] for line in report["lines"]]
    assert {*Part, "prompts", "pixels", "alone, and in a batch", "bfloat16 against float32"} <= {*parts}
    assert all(line["found"] in table for line in report["lines"])
    assert all(answer["verdict"] == "same" for answer in report["answers"])


def test_a_checkpoint_in_microsofts_layout_is_verified(verify: Verify, goldens: Goldens) -> None:
    """A checkpoint in Microsoft's layout passes; its weights are random, so no two tensors are alike, and
    its logits have a bias that transformers drops."""
    status, report, _ = verify(goldens.checkpoint, "--dtype", "float32")
    assert (status, faults(report)) == (0, set())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo checkpoint without tokenizer and preprocessor, and an adapter for it."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).symlink_to(DEMO / name)
    native = Florence2ForConditionalGeneration.from_pretrained(DEMO, dtype="float32")
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=[*ROBOFLOW, "qkv"])
    make_adapter(native, config, folder / "adapter", size=0.02)
    return folder / "model", folder / "adapter"


def test_what_a_deployment_puts_together_is_verified(
    verify: Verify, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a tokenizer, its base and an adapter from the settings pass, compared with PEFT's
    merge; a wrong adapter scale is a fault."""
    monkeypatch.setenv("FLORENCE_BASE", "demo")
    monkeypatch.setenv("FLORENCE_ADAPTER", str(parts[1]))
    status, report, _ = verify(parts[0], "--dtype", "float32")
    assert (status, faults(report)) == (0, set())
    assert str(parts[1]) in report["checkpoint"]
    scale = AdapterConfig.scale_of
    monkeypatch.setattr(AdapterConfig, "scale_of", lambda self, layer: 1.1 * scale(self, layer))
    status, report, _ = verify(parts[0], "--dtype", "float32")
    assert status == 1
    assert {"tower, timm's DaViT", Part.GREEDY} <= faults(report)


def swap_two_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange two weights of the same shape in the decoder."""

    def load(*arguments: Any) -> Florence2Model:
        model = loading_model(*arguments)
        one, other = (layer.fc1.bias for layer in model.language.decoder.layers[:2])
        one.data, other.data = other.data, one.data
        return model

    loading_model = loading.load_model
    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(ours, "load_model", load)


def shift_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shift the decoder's positions by one."""
    monkeypatch.setattr(attention, "POSITION_OFFSET", attention.POSITION_OFFSET + 1)


def allow_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the n-gram rule off."""
    ban = BatchedAdvance.ban

    def allow(self: BatchedAdvance, logits: Tensor) -> None:
        self.state.ngram_sizes.zero_()
        ban(self, logits)

    monkeypatch.setattr(BatchedAdvance, "ban", allow)


def map_a_name_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange rows and columns in the table of positions."""
    names = layout.PREFIXES["native"]
    rows, columns = "vision.projector.rows.", "vision.projector.columns."
    monkeypatch.setitem(names, rows, layout.PREFIXES["native"][columns])
    monkeypatch.setitem(names, columns, names[rows].replace("column", "row"))


def swap_tower_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange two norms in each block of the tower."""
    table = list(layout.TOWER["native"])
    table += [(r"\.norm1\.", ".norm0."), (r"\.norm2\.", ".norm1."), (r"\.norm0\.", ".norm2.")]
    monkeypatch.setitem(layout.TOWER, "native", tuple(table))


@pytest.mark.parametrize(
    ("spoil", "shown"),
    [
        (swap_two_weights, {Part.GREEDY, Part.BEAMS, Part.SEARCHES}),
        (shift_positions, {Part.GREEDY, Part.BEAMS, Part.SEARCHES}),
        (allow_repeats, {Part.SEARCHES}),
        (map_a_name_wrongly, {Part.GREEDY, Part.BEAMS, Part.SEARCHES}),
        (swap_tower_norms, {"tower, timm's DaViT", "tower, transformers'"}),
    ],
)
def test_a_fault_is_reported(
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    shown: set[str],
) -> None:
    """A fault gives exit status 1, its lines in the report, and the differing answers."""
    spoil(monkeypatch)
    status, report, table = verify("demo", "--dtype", "float32")
    assert (status, report["verified"]) == (1, False)
    assert shown <= faults(report)
    assert "NOT verified" in table
    assert any(answer["verdict"] == "fault" for answer in report["answers"])
