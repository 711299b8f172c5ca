"""The demo's training: losses, resuming and the written checkpoint, on a tiny plan of a few steps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Florence2ForConditionalGeneration

from florence import Florence2
from florence.demo.train import Start, Trainer, main, train
from florence.demo.training.batches import IGNORED, START, Batches
from florence.demo.training.config import TRAINING, Sizes, TrainingConfig, TrainingStage
from florence.demo.training.losses import blur_table, picture_features
from florence.demo.world.scenes import Limits
from florence.demo.world.tokenizer import make_tokenizer
from florence.types.tasks import TASKS

SMALL = Limits(things=(1, 2), side=(64, 80))
TINY = TrainingConfig(
    sizes=Sizes(side=64, dims=(8, 16, 16, 32), heads=(1, 2, 2, 2), depths=(1, 1, 1, 1), window=2, width=32,
                text_heads=2, encoder_layers=1, decoder_layers=1),
    stages=(
        TrainingStage("see", 4, SMALL, 0, 25.0, 1.0, (3e-3, 3e-3), rises=True),
        TrainingStage("speak", 12, SMALL, 2, 10.0, 0.5, (3e-3, 3e-3), rises=True),
    ),
    batch=2,
    warm_up=1,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo's tokenizer."""
    return make_tokenizer()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The folder of the tiny plan, trained without interruption."""
    directory = tmp_path_factory.mktemp("whole")
    _advance(Trainer(TINY, CPU, tokenizer), TINY.steps, directory)
    return directory


def _advance(trainer: Trainer, stop: int, directory: Path) -> None:
    """Train until the step `stop` and save."""
    batches = Batches(trainer.plan, trainer.tokenizer)
    while trainer.step < stop:
        trainer.train_step(batches[trainer.step])
    trainer.save(directory)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(trained: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A run stopped after three steps and resumed has the weights and moments of an uninterrupted run, bit
    for bit."""
    _advance(Trainer(TINY, CPU, tokenizer), 3, tmp_path)
    resumed = Trainer.resume(TINY, CPU, tmp_path)
    assert resumed.step == 3
    _advance(resumed, TINY.steps, tmp_path)
    whole, parted = torch.load(trained / "state.pt"), torch.load(tmp_path / "state.pt")
    torch.testing.assert_close(parted, whole, rtol=0, atol=0)


def test_a_start_brings_the_weights_and_the_stage(trained: Path, tmp_path: Path) -> None:
    """From a checkpoint, training starts at the named stage with the checkpoint's weights and tokenizer.

    Later runs resume from their own state, and a checkpoint of another size is refused.
    """
    start = Start(trained / "checkpoint", "speak")
    trainer = Trainer.resume(TINY, CPU, tmp_path, start)
    assert trainer.step == 2
    whole = Trainer.resume(TINY, CPU, trained)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter.half(), trainer.model.get_parameter(name).half()), name
    assert trainer.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    _advance(trainer, 3, tmp_path)
    assert Trainer.resume(TINY, CPU, tmp_path, start).step == 3
    wider = replace(TINY, sizes=replace(TINY.sizes, width=48))
    with pytest.raises(RuntimeError):
        Trainer.resume(wider, CPU, tmp_path / "none", start)


def test_outlines_are_the_answers_polygons(tokenizer: Tokenizer) -> None:
    """The plain head learns, for each thing at a picture token, the vertices that the segmentation answer
    writes."""
    written = set()
    batches = Batches(replace(TINY, stages=TINY.stages[1:]), tokenizer)
    for step in range(len(batches)):
        batch = batches[step]
        assert batch.outlines.shape == (len(batch.things), 24)
        for row in batch.outlines:
            corners = row[row != IGNORED].tolist()
            assert len(corners) >= 6
            assert row[len(corners) :].eq(IGNORED).all()
            written.add("".join(f"<loc_{place}>" for place in corners))
    answered = {
        text
        for step in range(len(batches))
        for group in batches[step].groups
        for labels in group.labels
        if (text := tokenizer.decode(labels[labels != IGNORED].tolist(), skip_special_tokens=False))
        and re.fullmatch(r"<s>(<loc_\d+>){10,}</s>", text)
    }  # fmt: skip
    assert answered
    assert {text.removeprefix("<s>").removesuffix("</s>") for text in answered} <= written


def test_a_start_without_a_stage_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A start without a stage, and a stage without a start, are refused."""
    for option in (["--start", str(tmp_path)], ["--stage", "outline"]):
        monkeypatch.setattr("sys.argv", ["train", "--state", str(tmp_path / "state"), *option])
        with pytest.raises(SystemExit, match="2"):
            main()


def test_training_lowers_the_loss(tokenizer: Tokenizer) -> None:
    """Twelve steps on one batch lower both losses."""
    trainer = Trainer(replace(TINY, stages=TINY.stages[1:]), CPU, tokenizer)
    batch = Batches(trainer.plan, trainer.tokenizer)[0]
    losses = [trainer.train_step(batch) for _ in range(12)]
    assert losses[-1]["answers"] < 0.9 * losses[0]["answers"]
    assert losses[-1]["head"] < 0.9 * losses[0]["head"]


@pytest.mark.slow
def test_the_command_trains_and_then_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` reaches the plan's end with a drawing process, and a second run takes no step."""
    short = replace(TINY, stages=TINY.stages[:1])
    train(short, tmp_path, CPU)
    train(short, tmp_path, CPU)
    printed = capsys.readouterr().out
    assert "step 2 of 2, 2 steps in this run" in printed
    assert "step 2 of 2, 0 steps in this run" in printed


def test_batches_are_the_same_each_time(tokenizer: Tokenizer) -> None:
    """Batch n is the same in every run, and differs from batch n + 1."""
    first, again, other = (Batches(TINY, tokenizer)[step] for step in (4, 4, 5))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.things, again.things)
    for one, two in zip(first.groups, again.groups, strict=True):
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.prompt, two.prompt)
    assert not torch.equal(first.pixels, other.pixels)


def test_decoder_inputs_are_the_labels_moved_by_one(tokenizer: Tokenizer) -> None:
    """The decoder reads </s> <s> text for the labels <s> text </s>, which is Florence-2's convention."""
    for group in Batches(TINY, tokenizer)[4].groups:
        assert (group.inputs[:, 0] == START).all()
        assert (group.labels[:, 0] == 0).all()
        for inputs, labels in zip(group.inputs, group.labels, strict=True):
            length = int((labels != IGNORED).sum())
            assert labels[length - 1] == 2
            assert torch.equal(inputs[1:length], labels[: length - 1])


def test_blurred_targets_are_distributions_around_the_truth() -> None:
    """Each row sums to one and is highest at its own bin; a wider blur is lower there."""
    narrow, wide = blur_table(4.0, CPU), blur_table(20.0, CPU)
    for table in (narrow, wide):
        assert torch.allclose(table.sum(1), torch.ones(1000))
        assert torch.equal(table.argmax(1), torch.arange(1000))
    assert (narrow.diagonal() > wide.diagonal()).all()


def test_the_plan_is_whole() -> None:
    """Every stage has a share for every task, each step has its stage, and the rate starts low and ends near
    zero."""
    assert all(set(stage.shares) == set(TASKS) for stage in TRAINING.stages)
    lengths = [stage.pictures // TRAINING.batch for stage in TRAINING.stages]
    assert TRAINING.steps == sum(lengths)
    assert TRAINING.stage_at(0)[0] is TRAINING.stages[0]
    assert TRAINING.stage_at(lengths[0])[0] is TRAINING.stages[1]
    assert TRAINING.stage_at(TRAINING.steps - 1)[0] is TRAINING.stages[-1]
    assert TRAINING.rate_at(0) < 0.02 * TRAINING.stages[0].rate[0]
    assert TRAINING.rate_at(TRAINING.steps - 1) < 0.01 * TRAINING.stages[0].rate[0]


def test_the_checkpoint_is_native_and_loads_in_transformers(trained: Path) -> None:
    """transformers finds exactly its own tensors in the written checkpoint, and computes the same picture
    tokens."""
    model, found = Florence2ForConditionalGeneration.from_pretrained(
        trained / "checkpoint", output_loading_info=True, dtype=torch.float32
    )
    assert not any(found.values())
    own = Trainer.resume(TINY, CPU, trained).model.eval()
    pixels = torch.randint(
        0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        difference = picture_features(own, pixels) - picture_features(model.eval(), pixels)
    assert difference.abs().max() < 0.03  # the file holds float16


def test_the_checkpoint_loads_in_florence_with_its_settings(trained: Path) -> None:
    """Florence2.load reads the written checkpoint, and an answer begins with the forced start tokens."""
    from PIL import Image

    with Florence2.load(str(trained / "checkpoint"), device="cpu", dtype="float32") as model:
        answer = model.run(Image.new("RGB", (80, 60), "red"), "<CAPTION>", max_new_tokens=6)
    assert answer.token_ids[:2] == [2, 0]
    assert answer.token_ids[-1] == 2
    assert len(answer.token_ids) <= 7
