"""The plain search's result for a request alone, computed once for each model: several decoders are compared
with it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from florence.engine.device.beams.reference import Hypothesis, TokenRules, generate_alone
from florence.engine.request import Request
from florence.model.florence2 import Florence2Model

_KNOWN: WeakKeyDictionary[Florence2Model, dict[Any, Hypothesis]] = WeakKeyDictionary()


def alone(model: Florence2Model, request: Request, rules: TokenRules) -> Hypothesis:
    """The plain search's result for a request. The model's weights must not change between calls."""
    known = _KNOWN.setdefault(model, {})
    asked = request.digest, request.prompt_ids, request.options, rules
    if asked not in known:
        with torch.inference_mode():
            known[asked] = generate_alone(model, request, rules)
    return known[asked]
