"""Bulk runs on a Ray cluster: Ray Data moves the rows, and each actor has a model of its own.

Knows the jobs of `florence.bulk` and the model; knows nothing about command lines. Comes with the extra
"ray".
"""

from florence.ray.actor import FlorenceActor

__all__ = ["FlorenceActor"]
