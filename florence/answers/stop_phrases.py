"""Stop phrases: phrase grounding leaves them out because they name nothing visible."""

from __future__ import annotations

from typing import Final

_PERSONAL = (
    "I me mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves"
)
_DEMONSTRATIVE = "this that these those who whom whose which what"
_INDEFINITE = (
    "all another any anybody anyone anything each everybody everyone everything few many nobody none one "
    "oneself several some somebody someone something lots"
)
_SEVERAL_WORDS = ("each other", "one another", "the image", "a group", "a set", "other objects")

# The 72 of the original's list, matched whole and with their case.
STOP_PHRASES: Final = frozenset(
    f"{_PERSONAL} {_DEMONSTRATIVE} {_INDEFINITE} image images the a an".split()
) | frozenset(_SEVERAL_WORDS)
