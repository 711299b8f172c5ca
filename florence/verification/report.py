"""The report of `florence verify`: as a table for people, and as JSON for programs. Knows nothing about how
answers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from florence.verification.progress import duration
from florence.verification.verdict import Compared, Verdict

_SHOWN: Final = 10  # most differing answers in the table


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `ok`: None for a line that is only information."""

    part: str
    ok: bool | None
    found: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings. `about`: what was compared, with which versions and settings."""

    about: Mapping[str, Any]
    lines: Sequence[Line]
    compared: Sequence[Compared]
    seconds: float
    faults: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "faults", [line.part for line in self.lines if line.ok is False])

    def table(self) -> Iterator[str]:
        """The table's lines."""
        yield "; ".join(f"{name} {_plain(value)}" for name, value in self.about.items())
        yield ""
        width = max(len(line.part) for line in self.lines)
        marks = {True: "ok", False: "FAULT", None: "-"}
        for line in self.lines:
            yield f"  {line.part:<{width}}  {marks[line.ok]:<5}  {line.found}"
        yield ""
        different = [each for each in self.compared if each.verdict is not Verdict.SAME]
        different.sort(key=lambda each: each.verdict is not Verdict.FAULT)
        for each in different[:_SHOWN]:
            yield from _described(each)
        if len(different) > _SHOWN:
            yield f"  and {len(different) - _SHOWN} more: --json FILE has them all"
        took = duration(self.seconds)
        if self.faults:
            yield f"NOT verified, in {took}: {', '.join(self.faults)}"
        else:
            yield f"Verified in {took}: in float32, florence answers as transformers does with these weights."

    def json(self) -> dict[str, Any]:
        """The same with every answer, as JSON values."""
        return {
            "verified": not self.faults,
            "seconds": round(self.seconds, 1),
            **self.about,
            "lines": [asdict(line) for line in self.lines],
            "answers": [_answer(each) for each in self.compared],
        }


def _answer(compared: Compared) -> dict[str, Any]:
    trial = compared.trial
    return {
        "task": trial.task.token,
        "text": trial.text,
        "picture": trial.picture.name,
        "settings": asdict(trial.options),
        "verdict": compared.verdict.value,
        "why": compared.why,
        "largest_difference": compared.largest if compared.largest < float("inf") else None,
        "token_ids": list(compared.ours.token_ids),
        **({} if compared.same_ids else {"transformers_token_ids": list(compared.theirs.token_ids)}),
    }


def _described(compared: Compared) -> Iterator[str]:
    yield f"  {compared.verdict}: {compared.trial}"
    yield f"    {compared.why}"
    if not compared.same_ids:
        ours, theirs = compared.ours.token_ids, compared.theirs.token_ids
        pairs = zip(ours, theirs, strict=False)
        first = next(
            (place for place, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs))
        )
        yield f"    from token {first} on: florence {_few(ours[first:])}, transformers {_few(theirs[first:])}"


def _few(ids: Sequence[int], count: int = 8) -> str:
    return " ".join(map(str, ids[:count])) + (" ..." if len(ids) > count else "")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
