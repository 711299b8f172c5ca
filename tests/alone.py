"""What the plain search gives for a request alone, computed once for each model: several ways to decode are
compared with it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from florence.engine.device.beams.reference import Hypothesis, TokenRules, generate_alone
from florence.engine.request import Request
from florence.model.florence2 import Florence2Model

_KNOWN: WeakKeyDictionary[Florence2Model, dict[Any, Hypothesis]] = WeakKeyDictionary()


def alone(model: Florence2Model, request: Request, rules: TokenRules) -> Hypothesis:
    """Of a model whose weights stay as they are."""
    known = _KNOWN.setdefault(model, {})
    asked = request.digest, request.prompt_ids, request.options, rules
    if asked not in known:
        with torch.inference_mode():
            known[asked] = generate_alone(model, request, rules)
    return known[asked]
