"""What the tower saw in the latest pictures, so that several tasks on one picture run it once.

Picture tokens do not depend on the task. A bounded memory, least recently used first out; imports no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A tensor, as far as this module cares."""

    @property
    def nbytes(self) -> int: ...


FeaturesT = TypeVar("FeaturesT", bound=Sized)


class FeatureCache(Generic[FeaturesT]):
    """Features by the digest of the pixels they were made of, `max_bytes` of them at most.

    `misses` counts pictures that were not remembered. Not safe for threads: the engine's own uses it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.misses = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._features: OrderedDict[bytes, FeaturesT] = OrderedDict()

    def clear(self) -> None:
        """Forget all pictures."""
        self._features.clear()
        self._bytes = 0

    def find(self, digests: Sequence[bytes]) -> dict[bytes, FeaturesT]:
        """The features of those pictures that are remembered; the same picture is missed only once."""
        found = {digest: self._features[digest] for digest in digests if digest in self._features}
        for digest in found:
            self._features.move_to_end(digest)
        self.misses += len(set(digests) - found.keys())
        return found

    def keep(self, features: Mapping[bytes, FeaturesT]) -> None:
        """Remember the features of new pictures, and forget the oldest if they are too many."""
        for digest, picture in features.items():
            self._keep(digest, picture)

    def _keep(self, digest: bytes, features: FeaturesT) -> None:
        if digest not in self._features:
            self._features[digest] = features
            self._bytes += features.nbytes
        self._features.move_to_end(digest)
        while self._bytes > self._max_bytes:
            _, oldest = self._features.popitem(last=False)
            self._bytes -= oldest.nbytes
