"""Count the kernels that PyTorch's operations would launch on a GPU, by running them on fake tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

# PyTorch offers fake tensors and dispatch modes in private modules only.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNEL = {"device", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh"}
SEVERAL = {
    "masked_fill": 2,  # one copy and one fill
    "zeros": 1,
    "scatter": 2,
    "index_put": 2,
    "logsumexp": 4,  # amax, subtract and exp, sum, log and add
    "constant_pad_nd": 2,
    "convolution": 2,  # a separate kernel adds the bias
}


class KernelCount(TorchDispatchMode):
    """Count launches by operation in `kernels`. An attention counts as one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self._patch = patch.object(F, "scaled_dot_product_attention", self.attend)

    def __enter__(self) -> KernelCount:
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._patch.stop()

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """An empty result in the memory layout of the fused kernels: [rows, queries, heads, head_dim]."""
        self.kernels["attention"] += 1
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            self.kernels["attention's mask"] += 3
        return queries.transpose(1, 2).new_empty(queries.transpose(1, 2).shape).transpose(1, 2)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in NO_KERNEL and not _is_view(func, args, result):
            self.kernels[name] += SEVERAL.get(name, 1)
        return result


def _is_view(func: Any, args: Any, result: Any) -> bool:
    """True if the result shares an input's memory and nothing was written.

    Storage identity and schema are private in PyTorch, which has no public function for either.
    """
    if func._schema.is_mutable or not isinstance(result, Tensor | tuple | list):
        return False
    storages = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return bool(made) and all(leaf.untyped_storage()._cdata in storages for leaf in made)
