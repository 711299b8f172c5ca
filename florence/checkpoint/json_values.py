"""Typed values of a checkpoint's JSON files. Errors name the file, the key, its value, and what is expected.

Knows JSON values; knows nothing about their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from florence.checkpoint.files import read_json
from florence.errors import CheckpointError, quote

LARGEST: Final = 1e38
"""Largest absolute value of a number: float32 can represent it."""


class JsonValues:
    """The values of one JSON object, or of several: the first one that has a value counts.

    A value of null is as if it was missing. Every method raises `CheckpointError` for a value that is not as
    its name says; `default` stands for a missing value, and None means that there has to be one.
    """

    def __init__(self, *sources: tuple[str, Mapping[str, Any]]) -> None:
        """`sources`: what stands before a key in errors, and the object."""
        self.sources = sources

    @classmethod
    def of_file(cls, path: Path) -> JsonValues:
        """The values of a file, which holds an object."""
        return cls((f"{path}: ", read_json(path)))

    def section(self, key: str) -> JsonValues:
        """The values of an object in this object."""
        where, value = self._find(key)
        if not isinstance(value, dict):
            raise self.refused(key, "expected an object")
        return JsonValues((f"{where}{key}.", value))

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        value = self._find(key)[1]
        return default if value is None else value

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        minimum: int = 1,
        maximum: int,
        what: str = "an integer",
    ) -> int:
        """An integer from `minimum` to `maximum`; `what`: what it stands for."""
        value = self.get(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.refused(key, f"expected {what} from {minimum} to {maximum}")
        return value

    def number(
        self, key: str, default: float | None = None, *, minimum: float = -LARGEST, maximum: float = LARGEST
    ) -> float:
        """A number from `minimum` to `maximum`."""
        value = self.get(key, default)
        if not _is_number(value) or not minimum <= value <= maximum:
            raise self.refused(key, f"expected a number from {minimum} to {maximum}")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of so many numbers."""
        values = self.get(key)
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            raise self.refused(key, f"expected {count} numbers")
        return list(map(float, values))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refused(key, "expected true or false")
        return value

    def require(self, key: str, supported: object) -> None:
        """Only this value, or none."""
        if self.get(key, supported) != supported:
            raise self.refused(key, f"supported is only {supported!r}")

    def refused(self, key: str, why: str) -> CheckpointError:
        """The error for a value that can't be used."""
        where, value = self._find(key)
        return CheckpointError(f"{where}{key} is {quote(value)}, {why}")

    def _find(self, key: str) -> tuple[str, Any]:
        """What stands before the key, and its value; None if it is missing."""
        found = ((where, values[key]) for where, values in self.sources if values.get(key) is not None)
        return next(found, (self.sources[0][0], None))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
