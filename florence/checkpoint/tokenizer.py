"""Text to token ids and back, exactly as Florence-2's original processor does it.

The original adds 1024 tokens to BART's byte-level BPE when it is loaded; their ids follow the base
vocabulary, in the order of `ADDED_TOKENS`. Files in the native layout contain them already. Both are read and
checked here: with a wrong id for `<loc_0>` a model would generate nonsense without an error.

The files are read by `tokenizers`, the library under transformers' fast tokenizers. Ids are the same;
importing transformers takes a second, and its class changes the shared tokenizer at each call, so that two
threads that encode at once fail ("Already borrowed").

Knows nothing about tasks, prompts, pictures or tensors. Not covered: truncation (the original never
truncates), tokenizers other than byte-level BPE with `<s>`, `<pad>` and `</s>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from florence.checkpoint.files import MERGES, TOKENIZER, VOCAB, read_json, read_text
from florence.errors import CheckpointError, TaskError, quote

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
IMAGE = "<image>"  # in native files only: a placeholder for picture tokens in transformers' prompts

LOCATIONS = tuple(f"<loc_{bin_index}>" for bin_index in range(1000))

# In the order of the original processor, which determines the ids; "desciption" is its spelling.
ADDED_TOKENS: tuple[str, ...] = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *LOCATIONS,
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>"),
    *("<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>"),
    *("<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>"),
    *("<poly>", "</poly>", "<and>"),
)

# Native checkpoints have one more token, `<image>`, and pad the embedding to a multiple of 64 rows.
MAX_SPARE_ROWS = 1 + 64


class Tokenizer:
    """Encodes prompts and decodes answers; thread-safe.

    `size`: rows of an embedding for the base vocabulary, `ADDED_TOKENS` and a fine-tune's own tokens;
    `<image>` counts only if own tokens follow it. `bos_id`, `pad_id`, `eos_id`: ids of `<s>`, `<pad>` and
    `</s>`. `location_ids`: of `<loc_0>` and those that follow it.
    """

    def __init__(self, backend: Backend) -> None:
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._alone = {token_id: backend.decode([token_id], skip_special_tokens=False) for token_id in added}
        self._image = backend.token_to_id(IMAGE)
        self.size = 1 + max(set(backend.get_vocab(with_added_tokens=True).values()) - {self._image})
        self.bos_id, self.pad_id, self.eos_id = (_required_id(backend, each) for each in (BOS, PAD, EOS))
        first = _required_id(backend, LOCATIONS[0])
        self.location_ids = range(first, first + len(LOCATIONS))

    def encode(self, prompt: str) -> list[int]:
        """`<s>` + the tokens of `prompt` + `</s>`; nothing is stripped or truncated.

        Raises `TaskError` for text that is not valid Unicode (JSON can contain half of a surrogate pair), and
        for `<image>`, for which the model has no embedding.
        """
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TaskError(
                f"the text holds half of a surrogate pair, U+{ord(prompt[error.start]):04X}, at character "
                f"{error.start}: send whole Unicode characters"
            ) from error
        ids: list[int] = self._backend.encode(prompt).ids
        if self._image in ids:
            raise TaskError(f"the text holds {IMAGE}, which stands for the picture itself; leave it out")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The raw text of `ids`, special tokens written out and spaces as they are.

        Ids past the vocabulary (padding rows of the embedding) have no text. Bytes that form no character
        become U+FFFD.
        """
        return self._backend.decode(ids, skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """`decode(ids)` cut into (text, start, stop), where the text comes from `ids[start:stop]`.

        Each special or added token (`<loc_n>`, `<poly>`, `</s>`, ...) is a piece of its own; tokens of plain
        text between two of them form one piece, since a character can be spread over several tokens. The
        texts joined are `decode(ids)` and the spans joined are `range(len(ids))`.
        """
        pieces: list[tuple[str, int, int]] = []
        for stand_alone, group in groupby(range(len(ids)), lambda place: ids[place] in self._alone):
            places = list(group)
            if stand_alone:
                pieces += ((self._alone[ids[place]], place, place + 1) for place in places)
            else:
                start, stop = places[0], places[-1] + 1
                pieces.append((self.decode(ids[start:stop]), start, stop))
        return pieces

    def reader(self) -> IncrementalDetokenizer:
        """A detokenizer for one sequence that is being generated."""
        return IncrementalDetokenizer(self._backend, frozenset((self.bos_id, self.pad_id, self.eos_id)))


class IncrementalDetokenizer:
    """Turns tokens into text one by one, each piece as soon as it is certain. Not thread-safe.

    A character of several bytes can be spread over tokens; it is returned with the last of them. `silent`:
    ids that are skipped. The joined results of `take` and `rest` equal `Tokenizer.decode` of the other ids.
    """

    def __init__(self, backend: Backend, silent: frozenset[int]) -> None:
        self._backend = backend
        self._silent = silent
        self._stream = decoders.DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._given = 0  # characters returned so far

    def take(self, token_id: int) -> str:
        """The text that this token makes certain; may be ""."""
        if token_id in self._silent:
            return ""
        self._ids.append(token_id)
        text = self._stream.step(self._backend, token_id) or ""
        self._given += len(text)
        return text

    def rest(self) -> str:
        """The text of incomplete bytes at the end. Call it once, after the last token."""
        return self._backend.decode(self._ids, skip_special_tokens=False)[self._given :]


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint directory: `tokenizer.json`, or `vocab.json` with `merges.txt`.

    `vocab_size`: rows of the model's embedding. Raises `CheckpointError` when files are missing or
    unreadable, when the added tokens have other ids than in the original, and when the vocabulary does not
    fit the embedding.
    """
    try:
        backend = _read_backend(directory)
        # A file may contain settings from training; the original encodes whole prompts.
        backend.no_truncation()
        backend.no_padding()
        _complete_added_tokens(backend, directory)
        tokenizer = Tokenizer(backend)
        _check_size(tokenizer, vocab_size, directory)
        _check_round_trip(tokenizer, _required_id(backend, ADDED_TOKENS[0]), directory)
    except CheckpointError:
        raise
    except BaseException as error:
        # For a file that it can't use, the Rust library raises plain `Exception`, or panics, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"the tokenizer in {directory} can't be read: {quote(str(error))}") from error
    return tokenizer


def _read_backend(directory: Path) -> Backend:
    file, vocab, merges = directory / TOKENIZER, directory / VOCAB, directory / MERGES
    if file.is_file():
        return Backend.from_str(read_text(file))
    if vocab.is_file() and merges.is_file():
        return _bart_backend(vocab, merges)
    raise CheckpointError(
        f"{directory} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt; "
        "copy the file from the checkpoint that this one was made from"
    )


def _bart_backend(vocab: Path, merges: Path) -> Backend:
    """BART's byte-level BPE from `vocab.json` and `merges.txt`."""
    lines = read_text(merges).split("\n")
    parts = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    backend = Backend(models.BPE(read_json(vocab), [(left, right) for left, _, right in parts]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(content, _required_id(backend, content)) for content in (BOS, EOS)],
    )
    backend.add_special_tokens([BOS, PAD, EOS, "<unk>", AddedToken("<mask>", lstrip=True)])
    return backend


def _required_id(backend: Backend, content: str) -> int:
    token_id = backend.token_to_id(content)
    if token_id is None:
        raise CheckpointError(f"the tokenizer has no {content} token, which Florence-2 needs")
    return token_id


def _complete_added_tokens(backend: Backend, directory: Path) -> None:
    """Add `ADDED_TOKENS` after the base vocabulary, or check that they are there already: after the base
    vocabulary, and before `<image>` and a fine-tune's own tokens."""
    found = {content: backend.token_to_id(content) for content in ADDED_TOKENS}
    if all(token_id is None for token_id in found.values()):
        added = [AddedToken(content, special=True, normalized=False) for content in ADDED_TOKENS]
        backend.add_special_tokens(added)
        found = {content: backend.token_to_id(content) for content in ADDED_TOKENS}
    first = _first_added(backend, found)
    for offset, content in enumerate(ADDED_TOKENS):
        if found[content] != first + offset:
            raise CheckpointError(
                f"the tokenizer in {directory} does not have Florence-2's added tokens in order, directly "
                f"after its base vocabulary: expected {content} as id {first + offset}, "
                f"found {'none' if found[content] is None else found[content]}"
            )


def _first_added(backend: Backend, found: Mapping[str, int | None]) -> int:
    """The id that `<od>` should have: the number of tokens that are neither Florence-2's nor added after
    these."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    ids = [token_id for token_id in found.values() if token_id is not None]
    last = max(ids)
    own = [token for token, token_id in vocabulary.items() if token_id > last and token not in found]
    return len(vocabulary) - len(ids) - len(own)


def _check_size(tokenizer: Tokenizer, vocab_size: int, directory: Path) -> None:
    if not 0 <= vocab_size - tokenizer.size <= MAX_SPARE_ROWS:
        raise CheckpointError(
            f"the tokenizer in {directory} does not fit the model: expected a vocabulary of {vocab_size} "
            f"(the embedding's rows, of which {MAX_SPARE_ROWS} may be spare), found {tokenizer.size} tokens"
        )


def _check_round_trip(tokenizer: Tokenizer, first: int, directory: Path) -> None:
    """Raise `CheckpointError` unless the added tokens are recognised in text, between `<s>` and `</s>`."""
    text = "".join(ADDED_TOKENS)
    expected = [tokenizer.bos_id, *range(first, first + len(ADDED_TOKENS)), tokenizer.eos_id]
    found = tokenizer.encode(text)
    if found != expected or tokenizer.decode(expected) != BOS + text + EOS:
        raise CheckpointError(
            f"the tokenizer in {directory} does not write Florence-2's added tokens as single tokens between "
            f"{BOS} and {EOS}: expected {_shortened(expected)}, found {_shortened(found)}"
        )


def _shortened(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 8 else f"{ids[:4]}...{ids[-2:]} ({len(ids)} ids)"
