"""A picture is encoded once while it is cached, and the cache is bounded."""

from __future__ import annotations

import random
from dataclasses import dataclass

from florence.engine.device.encode.features import FeatureCache


@dataclass(frozen=True)
class Features:
    """Fake features of a picture."""

    of: int
    nbytes: int = 10


class Tower:
    """A fake tower that records the pictures it encodes."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, pictures: list[int]) -> list[Features]:
        self.seen += pictures
        return [Features(picture) for picture in pictures]


def encode(cache: FeatureCache, tower: Tower, pictures: list[int]) -> list[int]:
    """Find the cached pictures, encode the new ones and keep them, as the engine does."""
    digests = {picture: str(picture).encode() for picture in pictures}
    found = cache.find([digests[picture] for picture in pictures])
    new = [picture for picture in digests if digests[picture] not in found]
    made = dict(zip((digests[picture] for picture in new), tower(new), strict=True))
    cache.keep(made)
    found |= made
    return [found[digests[picture]].of for picture in pictures]


def test_a_repeated_picture_is_encoded_once() -> None:
    """A picture is encoded once, in one batch and over several."""
    cache, tower = FeatureCache(100), Tower()
    assert encode(cache, tower, [1, 2, 1]) == [1, 2, 1]
    assert encode(cache, tower, [2, 3]) == [2, 3]
    assert tower.seen == [1, 2, 3]
    assert cache.misses == 3


def test_the_least_recently_used_are_dropped_first() -> None:
    """The least recently used picture is dropped first, and a found picture counts as used."""
    cache, tower = FeatureCache(30), Tower()
    encode(cache, tower, [1, 2, 3])
    encode(cache, tower, [1])
    encode(cache, tower, [4])
    assert encode(cache, tower, [1, 3, 4]) == [1, 3, 4]
    assert tower.seen == [1, 2, 3, 4]
    encode(cache, tower, [2])
    assert tower.seen[-1] == 2


def test_features_are_right_and_bytes_bounded_for_random_pictures() -> None:
    """Features are right and the bytes bounded, also for batches larger than the cache and for a cache of
    zero bytes."""
    dice = random.Random(3)
    for limit in (0, 10, 70):
        cache, tower = FeatureCache(limit), Tower()
        for _ in range(200):
            batch = [dice.randint(0, 12) for _ in range(dice.randint(1, 12))]
            assert encode(cache, tower, batch) == batch
            assert sum(features.nbytes for features in cache.features.values()) == cache.nbytes <= limit
