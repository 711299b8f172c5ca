"""Modules whose parameters keep what memory holds, because a checkpoint's tensors replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class Uninitialized(TorchFunctionMode):
    """A context in which `torch.nn.init` leaves tensors as they are.

    On the meta device some of these would import TorchDynamo, which takes seconds and is of no use here.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return function(*args, **named)
