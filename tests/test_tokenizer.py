"""The tokenizer against the original processor's ids and texts, and files that don't match the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from florence.checkpoint.tokenizer import ADDED_TOKENS, Tokenizer, load_tokenizer
from florence.errors import CheckpointError, TaskError

ORIGINAL_SIZE = 51289
# A base vocabulary as small as can be: four special tokens and the 256 bytes.
SMALL_BASE = 4 + 256
SMALL_SIZE = SMALL_BASE + 1024


def small_files() -> dict[str, Any]:
    """A tokenizer.json with byte-level BPE, no merges, and no added tokens of Florence-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = {content: index for index, content in enumerate([*special, *alphabet])}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(special)
    content: dict[str, Any] = json.loads(backend.to_str())
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    return content


def with_added(content: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """The file as in the native layout, with more special tokens after the base vocabulary."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    rows = [{"id": SMALL_BASE + index, "content": token, **flags} for index, token in enumerate(tokens)]
    return {**content, "added_tokens": [*content["added_tokens"], *rows]}


def load(directory: Path, content: dict[str, Any], vocab_size: int = SMALL_SIZE) -> Tokenizer:
    """The tokenizer of this file."""
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(directory, vocab_size)


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    """The goldens' checkpoint."""
    return shared / "goldens" / "A" / "checkpoint"


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> Tokenizer:
    """The tokenizer of the goldens' checkpoint."""
    return load_tokenizer(checkpoint, ORIGINAL_SIZE)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    """The golden values."""
    content: dict[str, Any] = json.loads((shared / "goldens" / "A" / "golden.json").read_text())
    return content


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer with the smallest base vocabulary."""
    return load(tmp_path_factory.mktemp("small"), small_files())


def test_prompts_have_the_originals_ids(original: Tokenizer, golden: dict[str, Any]) -> None:
    """Each golden prompt, odd ones too, gives the original processor's input ids."""
    cases = [case for case in golden["prompts"] if "input_ids" in case]
    assert len(cases) > 30
    for case in cases:
        assert original.encode(case["prompt"]) == case["input_ids"], case["prompt"]


def test_long_prompts_are_not_cut(original: Tokenizer, golden: dict[str, Any]) -> None:
    """A prompt past the original's model_max_length of 1024 keeps all its tokens."""
    (case,) = [case for case in golden["prompts"] if "n_input_ids" in case]
    prompt = "Locate the phrases in the caption: " + " ".join(["a small dog"] * 400)
    assert len(original.encode(prompt)) == case["n_input_ids"]


def test_decoding_gives_the_originals_text(original: Tokenizer, golden: dict[str, Any]) -> None:
    """Each golden sequence decodes to the original's text, with its special tokens and spaces."""
    for case in golden["generation"]:
        for sequence, text in zip(case["sequences"], case["text"], strict=True):
            assert original.decode(sequence) == text


def test_pieces_join_to_the_decoded_text(original: Tokenizer, golden: dict[str, Any]) -> None:
    """The pieces of each golden sequence join to its text, and each location is a piece of its own."""
    for case in golden["generation"]:
        for sequence in case["sequences"]:
            pieces = original.pieces(sequence)
            assert "".join(text for text, _, _ in pieces) == original.decode(sequence)
            located = [text for text, start, stop in pieces if text.startswith("<loc_") and stop == start + 1]
            assert len(located) == sum(50269 <= token_id <= 51268 for token_id in sequence)


@given(ids=st.lists(st.integers(min_value=0, max_value=SMALL_SIZE + 60), max_size=40))
def test_any_ids_are_cut_into_pieces(small: Tokenizer, ids: list[int]) -> None:
    """For any ids, broken characters and padding rows included, pieces cover each token once and join to
    the text."""
    pieces = small.pieces(ids)
    assert "".join(text for text, _, _ in pieces) == small.decode(ids)
    assert [position for _, start, stop in pieces for position in range(start, stop)] == list(range(len(ids)))
    assert all(
        text in ("<s>", "<pad>", "</s>", "<unk>", *ADDED_TOKENS)
        for text, start, _ in pieces
        if ids[start] >= SMALL_BASE and ids[start] < SMALL_SIZE
    )


@given(text=st.text(max_size=30))
def test_text_survives_the_round_trip(small: Tokenizer, text: str) -> None:
    """Any Unicode text decodes to itself between <s> and </s>."""
    assert small.decode(small.encode(text)) == f"<s>{text}</s>"


def test_half_a_surrogate_pair_is_the_callers_mistake(small: Tokenizer) -> None:
    """A string with half a surrogate pair, which JSON allows and UTF-8 doesn't, is refused with its
    position."""
    with pytest.raises(TaskError, match=r"U\+D83D, at character 4"):
        small.encode("cat \ud83d")


def test_threads_share_a_tokenizer(small: Tokenizer) -> None:
    """Encoding in eight threads at once gives the ids of one thread."""
    texts = [f"picture {number} <loc_{number}>" for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(small.encode, texts)) == [small.encode(text) for text in texts]


def test_the_own_token_of_pictures_is_no_text(tmp_path: Path, small: Tokenizer) -> None:
    """A text with `<image>` is refused where the checkpoint has that token, which has no embedding;
    elsewhere it is plain text."""
    native = load(tmp_path, with_added(small_files(), [*ADDED_TOKENS, "<image>"]), SMALL_SIZE + 1)
    with pytest.raises(TaskError, match="the text holds <image>"):
        native.encode("find <image> in it")
    assert native.encode("find <imag in it") == small.encode("find <imag in it")
    assert max(small.encode("find <image> in it")) < SMALL_SIZE


def test_both_layouts_give_the_same_ids(tmp_path: Path, small: Tokenizer) -> None:
    """Added tokens that are already in the file, with `<image>` after them, give the ids of added ones."""
    native = load(tmp_path, with_added(small_files(), [*ADDED_TOKENS, "<image>"]), SMALL_SIZE + 1 + 60)
    text = "a<loc_0><loc_999><poly>b"
    assert native.encode(text) == small.encode(text)
    assert native.size == small.size == SMALL_SIZE
    assert (native.bos_id, native.pad_id, native.eos_id) == (0, 1, 2)


def test_settings_of_a_training_run_do_not_cut_prompts(tmp_path: Path) -> None:
    """Truncation and padding in the file are ignored."""
    content = small_files()
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    assert len(load(tmp_path, content).encode("ten letters")) == 2 + len("ten letters")


def test_the_two_older_files_are_enough(
    tmp_path: Path, checkpoint: Path, original: Tokenizer, golden: dict[str, Any]
) -> None:
    """vocab.json with merges.txt gives the ids of tokenizer.json on all golden prompts."""
    shutil.copy(checkpoint / "vocab.json", tmp_path)
    merges = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    older = load_tokenizer(tmp_path, ORIGINAL_SIZE)
    for case in golden["prompts"]:
        if "input_ids" in case:
            assert older.encode(case["prompt"]) == original.encode(case["prompt"])


def swapped(content: dict[str, Any]) -> dict[str, Any]:
    """The file with two added tokens exchanged."""
    tokens = list(ADDED_TOKENS)
    tokens[4], tokens[5] = tokens[5], tokens[4]
    return with_added(content, tokens)


def panicking(content: dict[str, Any]) -> dict[str, Any]:
    """A file that makes the library panic: it cuts a prefix off a merge's second half without a look at
    its length."""
    changes = {"merges": [["a", "b"]], "continuing_subword_prefix": "xx"}
    return {**content, "model": {**content["model"], **changes}}


def without_bos(content: dict[str, Any]) -> dict[str, Any]:
    """The file without the token <s>."""
    return json.loads(json.dumps(content).replace("<s>", "<S>"))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "vocab_size", "message"),
    [
        (dict, SMALL_SIZE - 1, f"vocabulary of {SMALL_SIZE - 1} .*found {SMALL_SIZE} tokens"),
        (dict, SMALL_SIZE + 66, f"vocabulary of {SMALL_SIZE + 66} .*found {SMALL_SIZE} tokens"),
        (dict, ORIGINAL_SIZE, "vocabulary of 51289"),
        (swapped, SMALL_SIZE, "expected <loc_0> as id 264, found 265"),
        (lambda file: with_added(file, [*ADDED_TOKENS[:-1]]), SMALL_SIZE, "<and> as id 1283, found none"),
        (without_bos, SMALL_SIZE, "no <s> token"),
        (lambda file: {**file, "post_processor": None}, SMALL_SIZE, "between <s> and </s>: expected"),
        (lambda file: {"version": "1.0"}, SMALL_SIZE, "can't be read"),
        (panicking, SMALL_SIZE, "can't be read"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], vocab_size: int, message: str
) -> None:
    """A wrong size, order, special token or framing is a CheckpointError with the expected and the found
    value."""
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, change(small_files()), vocab_size)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error names the files that are accepted."""
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json, or vocab\.json with merges\.txt"):
        load_tokenizer(tmp_path, SMALL_SIZE)


@given(st.lists(st.integers(0, SMALL_SIZE + 3), max_size=40))
def test_text_read_token_by_token_is_the_text_of_all(small: Tokenizer, ids: list[int]) -> None:
    """Text read token by token is the whole text, for any bytes, added tokens and ids past the vocabulary;
    only `<s>`, `<pad>` and `</s>` have no text."""
    reader = small.reader()
    pieces = [reader.take(token_id) for token_id in ids]
    spoken = [token_id for token_id in ids if token_id > 2]
    assert "".join(pieces) + reader.rest() == small.decode(spoken)


def test_a_character_comes_with_its_last_token(small: Tokenizer) -> None:
    """A character comes with its last token; an incomplete one at the end is U+FFFD."""
    ids = small.encode("a\u732b\U0001f600")[1:-1]
    assert len(ids) == 8
    reader = small.reader()
    assert [reader.take(token_id) for token_id in ids[:-1]] == ["a", "", "", "\u732b", "", "", ""]
    assert reader.rest() == "\ufffd"
