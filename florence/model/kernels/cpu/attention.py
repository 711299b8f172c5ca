"""Attention in a decode step on a CPU: a request's keys and values are read once for all its beams.

A request has 1 to 8 query rows over hundreds of keys, so the time is that of reading the keys. PyTorch's
kernels are made for many rows: they copy or convert in separate passes. Knows tensors and addresses; the
compiled code is in `attention_kernel.py`. Needs numba, which is imported when a `CpuAttention` is made, not
before.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from florence.model.kernels.cpu.objects import load_kernel
from florence.model.kernels.cpu.openmp import DTYPES, OpenMPTeam, places

BUNDLE = 8
"""Rows that one thread computes one after another in `self_attention`: beams share most of their past, which
then stays in the CPU's cache."""

MAX_STARTS = 128
"""Row counts for which `self_attention` keeps its trivial `starts`."""


class CpuAttention:
    """The kernel for one dtype and head_dim, compiled (about two seconds) unless cached on disk.

    `threads` as for `OpenMPTeam`. Safe to call from several threads at once. No gradients.
    """

    def __init__(self, dtype: torch.dtype, head_dim: int, threads: int | None) -> None:
        from florence.model.kernels.cpu import attention_kernel

        if dtype not in DTYPES:
            raise ValueError(f"no kernel for {dtype}; there are ones for {', '.join(map(str, DTYPES))}")
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim must be even, not {head_dim}")
        self._dtype, self._head_dim = dtype, head_dim
        self._team = OpenMPTeam(threads)
        self._scratch_bytes = attention_kernel.scratch_bytes
        make_work = partial(attention_kernel.make_work, dtype, head_dim)
        fields = attention_kernel.AttentionJob._fields
        self._kernel = load_kernel(f"attention {dtype} {head_dim}", fields, make_work)
        self._one_each = lru_cache(MAX_STARTS)(_one_each)

    def cross_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor, lengths: Tensor
    ) -> Tensor:
        """Attention of each request's rows to its slot of the cache.

        queries [rows, heads * head_dim], the rows of a request adjacent; keys and values [slots, heads, room,
        head_dim]; int32 slots [requests], starts [requests + 1] (request i has the rows starts[i]:starts[i +
        1]) and lengths [requests] (keys in use, at least 1). Returns [rows, heads * head_dim]; rows that
        belong to no request are undefined. Raises `ValueError` for shapes or dtypes that don't match, and for
        indices out of range.
        """
        groups = lengths.numel()
        if (slots.shape, starts.shape, lengths.shape) != ((groups,), (groups + 1,), (groups,)):
            raise ValueError("slots and lengths must be [requests], starts [requests + 1]")
        if not (slots.is_contiguous() and starts.is_contiguous() and lengths.is_contiguous()):
            raise ValueError("slots, starts and lengths must be contiguous")
        return self._run(queries, keys, values, (slots, 1, 0), starts, lengths, bundle=1)

    def self_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, sources: Tensor, lengths: Tensor
    ) -> Tensor:
        """Attention of each row to its own past, which is spread over rows of the cache.

        queries [rows, heads * head_dim]; keys and values [cache rows, heads, room, head_dim]; int32 sources
        [rows, positions] (position t of row r's past is in cache row sources[r, t]) and lengths [rows]
        (positions in use, at least 1). Returns [rows, heads * head_dim]. Raises `ValueError` for shapes or
        dtypes that don't match, and for indices out of range.
        """
        rows = queries.shape[0]
        if sources.ndim != 2 or sources.shape[0] != rows or lengths.shape != (rows,):
            raise ValueError("sources must be [rows, positions], lengths [rows]")
        if sources.stride(1) != 1 or not lengths.is_contiguous():
            raise ValueError("lengths and the sources of a row must be contiguous")
        room = min(keys.shape[2], sources.shape[1])
        chosen = sources, sources.stride(0), 1
        one_each = self._one_each(rows)
        return self._run(queries, keys[:, :, :room], values[:, :, :room], chosen, one_each, lengths, BUNDLE)

    def _run(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        chosen: tuple[Tensor, int, int],
        starts: Tensor,
        lengths: Tensor,
        bundle: int,
    ) -> Tensor:
        """`chosen`: slots, and their strides between groups and between positions."""
        indices, group_step, position_step = chosen
        self._check(queries, keys, values, (indices, starts, lengths))
        slots, heads, room, _ = keys.shape
        output = queries.new_empty(queries.shape)
        job = (  # the fields of `AttentionJob`
            *(lengths.shape[0], heads, queries.shape[0], slots, room, bundle),
            *(*places(queries), *places(keys), *places(values), *places(output)),
            *(indices.data_ptr(), group_step, position_step, starts.data_ptr(), lengths.data_ptr()),
        )
        faults = self._team.run(self._kernel.address, self._scratch_bytes(self._head_dim, room), job)
        if faults:
            raise ValueError("a slot, a row or a length is out of range of the tensors")
        return output

    def _check(self, queries: Tensor, keys: Tensor, values: Tensor, indices: tuple[Tensor, ...]) -> None:
        """Raise `ValueError` unless shapes, dtypes and strides are as the kernel needs; the kernel checks the
        values of `indices`."""
        head_dim = self._head_dim
        if keys.ndim != 4 or keys.shape != values.shape or keys.shape[3] != head_dim:
            raise ValueError(f"keys and values must both be [slots, heads, room, {head_dim}]")
        if queries.ndim != 2 or queries.shape[1] != keys.shape[1] * head_dim:
            raise ValueError(f"queries must be [rows, {keys.shape[1]} * {head_dim}]")
        for tensor in (queries, keys, values):
            if tensor.dtype != self._dtype or not tensor.is_cpu or tensor.stride(-1) != 1:
                needed = f"{self._dtype} with adjacent elements, in host memory"
                raise ValueError(f"queries, keys and values must be {needed}")
        if any(index.dtype != torch.int32 or not index.is_cpu for index in indices):
            raise ValueError("slots, sources, starts and lengths must be int32, in host memory")


def _one_each(rows: int) -> Tensor:
    """Starts of groups of one row each."""
    return torch.arange(rows + 1, dtype=torch.int32)
