"""Which requests the engine does not take: too many, with too long a wait, or too long themselves."""

from __future__ import annotations

from florence.engine.config import EngineConfig
from florence.errors import Overloaded, RequestError


def refusal(config: EngineConfig, waiting: int, wait_s: float) -> Overloaded | None:
    """Why one more request, behind `waiting` others and for `wait_s` seconds, is one too many; None if it is
    not."""
    max_latency_s = None if config.max_latency_ms is None else config.max_latency_ms / 1000
    if waiting >= config.max_queue:
        reason, retry_after_s = f"{waiting} requests are waiting, as many as may", wait_s
    elif max_latency_s is not None and wait_s > max_latency_s:
        reason = f"this request would wait for {wait_s:.1f} s, {max_latency_s:g} s are allowed"
        retry_after_s = wait_s - max_latency_s
    else:
        return None
    retry_after_s = max(1.0, retry_after_s)
    return Overloaded(f"{reason}; come back in {retry_after_s:.0f} s", retry_after_s=retry_after_s)


def check_tokens(config: EngineConfig, prompt: int, new: int) -> None:
    """Raises RequestError where a prompt of `prompt` tokens, or an answer of `new` tokens, has no room."""
    if prompt > config.max_prompt_tokens:
        raise RequestError(
            f"the text has {prompt} tokens with the task's own words, at most "
            f"{config.max_prompt_tokens} fit beside the picture; shorten it"
        )
    if new > config.max_new_tokens:
        raise RequestError(f"max_new_tokens is {new}, this engine has room for {config.max_new_tokens}")
