"""A checkpoint's generation settings, checked against the same bounds as a request's options.

Knows JSON values, not files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from florence.errors import CheckpointError, quote
from florence.model.config import GenerationDefaults
from florence.types.bounds import LEAST_FACTOR, MAX_BEAMS, MAX_FACTOR, MAX_NGRAM, MAX_PENALTY, MAX_TOP_K

SettingsSource = tuple[str, Mapping[str, Any]]
"""Where the settings are from, for error messages; and the settings."""


def read_generation(sources: Sequence[SettingsSource], vocab_size: int) -> GenerationDefaults:
    """The settings, each from the first source that has it. Raises `CheckpointError`, which names the source,
    for a value that a request could not have either."""
    settings = _Settings(sources)
    return GenerationDefaults(
        num_beams=settings.integer("num_beams", 3, least=1, most=MAX_BEAMS),
        no_repeat_ngram_size=settings.integer("no_repeat_ngram_size", 3, least=0, most=MAX_NGRAM),
        early_stopping=settings.early_stopping(),
        length_penalty=settings.number("length_penalty", 1.0, least=-MAX_PENALTY, most=MAX_PENALTY),
        forced_bos_id=settings.forced_id("forced_bos_token_id", 0, vocab_size),
        forced_eos_id=settings.forced_id("forced_eos_token_id", 2, vocab_size),
        repetition_penalty=settings.number("repetition_penalty", 1.0, least=LEAST_FACTOR, most=MAX_FACTOR),
        temperature=settings.usable("temperature", 1.0, least=LEAST_FACTOR, most=MAX_FACTOR),
        top_k=int(settings.usable("top_k", 50, least=0, most=MAX_TOP_K)),
        top_p=settings.usable("top_p", 1.0, least=0.0, most=1.0),
    )


class _Settings:
    def __init__(self, sources: Sequence[SettingsSource]) -> None:
        self.sources = sources

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        source, value = self._find(name, default)
        if type(value) is not int or not least <= value <= most:
            raise _refused(source, name, value, f"an integer from {least} to {most}")
        return value

    def early_stopping(self) -> bool | Literal["never"]:
        source, value = self._find("early_stopping", True)
        if value == "never":
            return "never"
        if not isinstance(value, bool):
            raise _refused(source, "early_stopping", value, 'true, false or "never"')
        return value

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        source, value = self._find(name, default)
        if type(value) not in (int, float) or not least <= value <= most:
            raise _refused(source, name, value, f"a number from {least} to {most}")
        return float(value)

    def usable(self, name: str, default: float, *, least: float, most: float) -> float:
        """A sampling setting; `default` where it is invalid, since most requests don't use it."""
        _, value = self._find(name, default)
        return value if type(value) in (int, float) and least <= value <= most else default

    def forced_id(self, name: str, default: int, vocab_size: int) -> int | None:
        source, value = self._find(name, default, null_counts=True)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < vocab_size:
            raise _refused(source, name, value, f"a token id from 0 to {vocab_size - 1}, or null")
        return value

    def _find(self, name: str, default: Any, *, null_counts: bool = False) -> tuple[str, Any]:
        for source, values in self.sources:
            if name in values and (null_counts or values[name] is not None):
                return source, values[name]
        return "the default", default


def _refused(source: str, name: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(f"{source}: {name} is {quote(value)}, expected {allowed}")
