"""A checkpoint's generation settings, checked against the same bounds as a request's options.

Knows JSON values, not files.
"""

from __future__ import annotations

from florence.checkpoint.json_values import JsonValues
from florence.errors import CheckpointError
from florence.model.config import GenerationDefaults
from florence.types.bounds import MAX_BEAMS, MAX_FACTOR, MAX_NGRAM, MAX_PENALTY, MAX_TOP_K, MIN_FACTOR


def read_generation(values: JsonValues, vocab_size: int) -> GenerationDefaults:
    """The settings. Raises `CheckpointError` for a value that a request could not have either."""
    early_stopping = values.get("early_stopping", True)
    if early_stopping != "never" and not isinstance(early_stopping, bool):
        raise values.refused("early_stopping", 'expected true, false or "never"')
    return GenerationDefaults(
        num_beams=values.integer("num_beams", 3, maximum=MAX_BEAMS),
        no_repeat_ngram_size=values.integer("no_repeat_ngram_size", 3, minimum=0, maximum=MAX_NGRAM),
        early_stopping=early_stopping,
        length_penalty=values.number("length_penalty", 1.0, minimum=-MAX_PENALTY, maximum=MAX_PENALTY),
        forced_bos_id=_forced_id(values, "forced_bos_token_id", 0, vocab_size),
        forced_eos_id=_forced_id(values, "forced_eos_token_id", 2, vocab_size),
        repetition_penalty=values.number("repetition_penalty", 1.0, minimum=MIN_FACTOR, maximum=MAX_FACTOR),
        temperature=_usable(values, "temperature", 1.0, minimum=MIN_FACTOR, maximum=MAX_FACTOR),
        top_k=int(_usable(values, "top_k", 50, minimum=0, maximum=MAX_TOP_K)),
        top_p=_usable(values, "top_p", 1.0, minimum=0.0, maximum=1.0),
    )


def _usable(values: JsonValues, name: str, default: float, *, minimum: float, maximum: float) -> float:
    """A sampling setting; `default` where it is invalid, since most requests don't use it."""
    try:
        return values.number(name, default, minimum=minimum, maximum=maximum)
    except CheckpointError:
        return default


def _forced_id(values: JsonValues, name: str, default: int, vocab_size: int) -> int | None:
    """A token id; None where null is written before any other value."""
    written = (source[name] for _, source in values.sources if name in source)
    if next(written, default) is None:
        return None
    return values.integer(name, default, minimum=0, maximum=vocab_size - 1, what="a token id")
