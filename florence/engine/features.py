"""What the tower saw in the latest pictures, so that several tasks on one picture run it once.

Picture tokens do not depend on the task. A bounded memory, least recently used first out; imports no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A tensor, as far as this module cares."""

    @property
    def nbytes(self) -> int: ...


FeaturesT = TypeVar("FeaturesT", bound=Sized)
PictureT = TypeVar("PictureT")


class FeatureCache(Generic[FeaturesT]):
    """Features by the digest of the pixels they were made of, `max_bytes` of them at most.

    `hits` and `misses` count pictures. Not safe for threads: the engine's own uses it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._features: OrderedDict[bytes, FeaturesT] = OrderedDict()

    def look(
        self,
        digests: Sequence[bytes],
        pictures: Sequence[PictureT],
        encode: Callable[[list[PictureT]], Sequence[FeaturesT]],
    ) -> list[FeaturesT]:
        """The features of each picture; `encode` is called once, with those that are new, each only once."""
        new = dict(zip(digests, pictures, strict=True))
        found = {digest: self._features[digest] for digest in new if digest in self._features}
        missing = {digest: picture for digest, picture in new.items() if digest not in found}
        if missing:
            made = encode(list(missing.values()))
            found |= zip(missing, made, strict=True)
        for digest, features in found.items():
            self._keep(digest, features)
        self.misses += len(missing)
        self.hits += len(digests) - len(missing)
        return [found[digest] for digest in digests]

    def _keep(self, digest: bytes, features: FeaturesT) -> None:
        if digest not in self._features:
            self._features[digest] = features
            self._bytes += features.nbytes
        self._features.move_to_end(digest)
        while self._bytes > self._max_bytes:
            _, oldest = self._features.popitem(last=False)
            self._bytes -= oldest.nbytes
