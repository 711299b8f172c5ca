"""Operations that PyTorch dispatches, and their cost on a GPU: kernels, bytes moved, FLOP.

It uses fake CUDA tensors, which have shapes and strides but no memory, so it needs no GPU. Knows PyTorch's
operations; knows nothing about models. A kernel of the project is a custom operation (`torch.library`) and
counts as one kernel that reads and writes its arguments, unless it states its own cost (`own.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ledger.costs import Card

FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "device", "_reshape_alias"}
"""Operations that launch no kernel, in addition to views."""

FEW_QUERIES, TILE = 16, 128
"""Attention with fewer queries than the first, and rows and columns of its tiles, to which it rounds up."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One dispatched operation. `moved`: bytes read and written. `worked`: FLOP done; `flop`: FLOP needed,
    without those of partly filled tiles."""

    name: str
    kind: str
    kernels: int
    moved: float
    flop: float = 0.0
    worked: float = 0.0


@dataclass
class Ledger:
    """The operations of one piece of work, in order."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def kernels(self) -> int:
        """The number of kernels."""
        return sum(each.kernels for each in self.operations)

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return sum(each.moved for each in self.operations)

    @property
    def flop(self) -> float:
        """FLOP needed."""
        return sum(each.flop for each in self.operations)

    @property
    def fp8_flop(self) -> float:
        """The part of `flop` in fp8."""
        return sum(each.flop for each in self.operations if each.kind == "fp8 product")

    def seconds(self, card: Card) -> float:
        """Estimated time on a card, one kernel after the other."""
        return sum(card.seconds(each.kind, each.kernels, each.moved, each.worked) for each in self.operations)

    def by_name(self) -> Counter[str]:
        """Kernels of each operation."""
        counts: Counter[str] = Counter()
        for each in self.operations:
            counts[each.name] += each.kernels
        return counts


Rule = Callable[[tuple[Any, ...], Any], Operation]
"""A function from an operation's arguments and result to its cost on a GPU."""


class Counting(TorchDispatchMode):
    """Record each dispatched operation in a ledger. `rules`: for the project's kernels, by name, added to
    those below."""

    def __init__(self, ledger: Ledger, rules: Mapping[str, Rule] | None = None) -> None:
        super().__init__()
        self._ledger, self._rules = ledger, {**RULES, **(rules or {})}
        self._attention = AttentionAsOne(ledger)

    def __enter__(self) -> Counting:
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._attention.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name == "convolution" and args[0].is_contiguous(memory_format=torch.channels_last):
            # cuDNN writes this layout; without a GPU, PyTorch assumes another library.
            result = result.contiguous(memory_format=torch.channels_last)
        if name not in self._rules and launches_nothing(func, name, args, result):
            return result
        arguments = (*args, *(kwargs or {}).values())
        operation = self._rules.get(name, plain(name))(arguments, result)
        # A product that adds to its first argument in place counts as the one that does not.
        packet = getattr(torch.ops.aten, name.removesuffix("_"), func._overloadpacket)
        if packet in flop_registry:
            flop = float(flop_registry[packet](*args, **(kwargs or {}), out_val=result))
            kind = product_kind(name, args)
            operation = Operation(name, kind, operation.kernels, operation.moved, flop, flop)
        self._ledger.operations.append(operation)
        return result


class AttentionAsOne(TorchFunctionMode):
    """Count `scaled_dot_product_attention` as one kernel, as on a GPU, and three more for a boolean mask."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attention(*args, **(kwargs or {}))

    def _attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Record the attention and return an empty result."""
        result = torch.empty_like(queries)
        self._ledger.operations += attention(queries, keys, values, attn_mask, result)
        return result


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, result: Tensor
) -> list[Operation]:
    """The operations of one attention [..., queries, head_dim] over keys [..., keys, head_dim]."""
    *batch, rows, width = queries.shape
    columns = keys.shape[-2]
    made: list[Operation] = []
    if mask is not None and mask.dtype is torch.bool:
        numbers = stored(mask) * queries.element_size()
        made.append(Operation("attention mask", "memory", 3, 3 * stored(mask) + 3 * numbers))
    per_pair = 4.0 * width * torch.Size(batch).numel()
    kind = "attention, head of 32" if width <= 32 else "attention"
    if rows < FEW_QUERIES:
        kind = "attention, few queries"
    made.append(
        Operation(
            "scaled_dot_product_attention",
            kind,
            kernels=1,
            moved=sum(map(stored, (queries, keys, values, result)))
            + (stored(mask) if mask is not None else 0),
            flop=per_pair * rows * columns,
            worked=per_pair * tiled(rows) * tiled(columns),
        )
    )
    return made


def tiled(size: int) -> int:
    """The size rounded up to whole tiles."""
    return -(-size // TILE) * TILE


def stored(value: Any) -> float:
    """Bytes of memory that a tensor covers; expanded dimensions count once."""
    if not isinstance(value, Tensor):
        return 0.0
    count = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        count *= size if stride or not size else 1
    return float(count * value.element_size())


def total(values: Iterable[Any]) -> float:
    """Bytes of all tensors."""
    return sum(map(stored, values))


def launches_nothing(func: Any, name: str, args: tuple[Any, ...], result: Any) -> bool:
    """True if an operation only gives another view of its input.

    Schemas and storage identities are private in PyTorch, which has no public function for either.
    """
    if name.removeprefix("prim::") in FREE or not isinstance(result, Tensor | list | tuple):
        return True
    written = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
    aliases = any(returned.alias_info for returned in func._schema.returns)
    if written or not aliases:
        return False
    return all(
        isinstance(each, Tensor) and each.untyped_storage()._cdata == args[0].untyped_storage()._cdata
        for each in tree_leaves(result)
    )


def product_kind(name: str, args: tuple[Any, ...]) -> str:
    """The class of an operation that multiplies."""
    if name == "convolution":
        return "depthwise" if args[8] > 1 else "product"
    if name == "_scaled_mm":
        return "fp8 product"
    return "batched product" if name in ("bmm", "baddbmm") else "product"


def plain(name: str) -> Rule:
    """A rule for an operation that reads all its arguments and writes its result."""
    if name in ("fill_", "zero_"):
        return written(name)

    def rule(arguments: tuple[Any, ...], result: Any) -> Operation:
        moved = total(tree_leaves(arguments)) + total(tree_leaves(result))
        kind = "memory" if "::" not in name else "own"
        return Operation(name, kind, 1, moved)

    return rule


def written(name: str) -> Rule:
    """A rule for an operation that only writes its result."""
    return lambda arguments, result: Operation(name, "memory", 1, stored(result))


def gathered(name: str) -> Rule:
    """A rule for an operation that reads from its first argument only what it returns."""
    return lambda arguments, result: Operation(
        name, "memory", 1, 2 * stored(result) + total(tree_leaves(arguments[1:]))
    )


def scattered(name: str, reads: int = 0) -> Rule:
    """A rule for an operation that writes its last tensor argument into its first, which it reads `reads`
    times."""

    def rule(arguments: tuple[Any, ...], result: Any) -> Operation:
        tensors = [leaf for leaf in tree_leaves(arguments[1:]) if isinstance(leaf, Tensor)]
        return Operation(name, "memory", 1, total(tensors) + (1 + reads) * stored(tensors[-1]))

    return rule


def passes(name: str, kernels: int, reads: float, writes: float) -> Rule:
    """A rule for an operation that reads its first argument `reads` times, and writes as much
    `writes` times."""
    return lambda arguments, result: Operation(
        name, "memory", kernels, (reads + writes) * stored(arguments[0]) + total(tree_leaves(result))
    )


def copied(arguments: tuple[Any, ...], result: Any) -> Operation:
    """The cost of a copy."""
    return Operation("copy_", "memory", 1, stored(arguments[1]) + stored(result))


def most(arguments: tuple[Any, ...], result: Any) -> Operation:
    """The cost of `topk`.

    Over long rows PyTorch finds the last value by eight bits at a time, two kernels each, then gathers and
    sorts; short rows take two kernels.
    """
    values = arguments[0]
    if values.shape[-1] < 3000:
        return Operation("topk", "memory", 2, stored(values) + 2 * total(result))
    rounds = values.element_size()
    moved = (rounds + 1) * stored(values) + 3 * total(result)
    return Operation("topk", "memory", 2 * rounds + 3, moved)


def convolved(arguments: tuple[Any, ...], result: Any) -> Operation:
    """The cost of cuDNN's kernel, and of PyTorch's kernel that adds the bias."""
    has_bias = isinstance(arguments[2], Tensor)
    moved = total(arguments[:3]) + stored(result) * (3 if has_bias else 1)
    return Operation("convolution", "product", 2 if has_bias else 1, moved)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "convolution": convolved,
        "copy_": copied,
        "topk": most,
        "masked_fill": passes("masked_fill", 2, 2, 1),  # a copy and a fill
        # The maximum, its check (four), difference, exponential, sum, and two more over the rows.
        "logsumexp": passes("logsumexp", 9, 4, 2),
        **{name: gathered(name) for name in ("index", "gather", "index_select")},
        "embedding": gathered("embedding"),
        **{name: scattered(name) for name in ("index_put_", "scatter_")},
        "scatter_reduce_": scattered("scatter_reduce_", reads=1),
        **{name: written(name) for name in ("zeros", "full", "arange", "scalar_tensor", "zeros_like")},
        "full_like": written("full_like"),
    }
)
"""Rules for operations that are not one kernel over all their arguments."""
