"""A cache of picture tokens, so that several tasks on one picture run the tower once.

Picture tokens do not depend on the task. Bounded in bytes; the least recently used go first. Imports no
torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class FeatureCache:
    """Features by the picture's key, at most `max_bytes` of them.

    `misses` counts pictures that were not found. Not thread-safe: only the engine's thread uses it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.misses = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self.features: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of all cached features. Thread-safe."""
        return self._bytes

    def clear(self) -> None:
        """Drop all features."""
        self.features.clear()
        self._bytes = 0

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The features of those pictures that are in the cache. A missing key counts as one miss, however
        often it is listed."""
        found = {key: self.features[key] for key in keys if key in self.features}
        for key in found:
            self.features.move_to_end(key)
        self.misses += len(set(keys) - found.keys())
        return found

    def keep(self, features: Mapping[bytes, Tensor]) -> None:
        """Add the features of new pictures, and evict the least recently used ones beyond the limit."""
        for key, picture in features.items():
            if key not in self.features:
                self.features[key] = picture
                self._bytes += picture.nbytes
            self.features.move_to_end(key)
            while self._bytes > self._max_bytes:
                _, oldest = self.features.popitem(last=False)
                self._bytes -= oldest.nbytes
