"""Makes the demo checkpoint's tokenizer: byte-level BPE learned on this world's texts, in BART's layout.

Knows nothing about pictures or the network. Ids: <s> <pad> </s> <unk> 0 to 3, the learned entries, <mask>,
then the 1024 tokens that Microsoft's processor adds, in its order, then <image>.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from florence.checkpoint.files import TOKENIZER
from florence.checkpoint.tokenizer import ADDED_TOKENS, IMAGE
from florence.demo.world.ground_truth import questions
from florence.demo.world.scenes import Limits, Split, make_scene, scene_rng
from florence.demo.world.typeface import Typeface
from florence.demo.world.vocabulary import COLOURS, NUMBERS, SHAPES, SIZES, WORDS
from florence.types.tasks import TASKS

_MAX_LEARNED: Final = 1400
_SCENES: Final = 400


def make_tokenizer() -> Tokenizer:
    """The demo's tokenizer; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_LEARNED, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False, min_frequency=2, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*ADDED_TOKENS, IMAGE)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / TOKENIZER))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _texts() -> Iterator[str]:
    """The training texts: each name at the start of and inside a text, prompts, answers."""
    names = (*SHAPES, *COLOURS, *SIZES, *NUMBERS, *WORDS, "word", "The", "In", "To", "On", "an", "a")
    for name in names:
        yield from (name, f" {name}") * 4
    typeface = Typeface()
    for index in range(_SCENES):
        rng = scene_rng(Split.SAMPLES, 0, index)
        scene = make_scene(rng, typeface, Limits(things=(1, 6)))
        for question in questions(scene, rng) if scene.things else ():
            yield _unlocated(TASKS.build_prompt(TASKS[question.task], question.text))
            yield _unlocated(question.answer)


def _unlocated(text: str) -> str:
    """The text without locations, which are added tokens and never learned."""
    return text.split("<loc_")[0]
