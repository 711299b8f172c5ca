"""The fields of a chat completion's body that are not its messages: options, and what is not supported.

Knows OpenAI's names; what our own options may be is in `types.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from florence.errors import FieldError, OptionError, TaskError, quote
from florence.types.invalid import unknown_name
from florence.types.options import OF_SAMPLING, RequestParameters, read_request_parameters
from florence.types.tasks import Kind, read_kind

UNSUPPORTED: Final = "unsupported_parameter"
READ: Final = ("model", "messages", "stream", "stream_options", "answer_as")
"""Fields that are read elsewhere, or below by name."""
IGNORED: Final = (
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "user",
)  # fmt: skip
"""Fields of OpenAI's that change no answer."""
LENGTHS: Final = ("max_completion_tokens", "max_tokens")
"""OpenAI's names of `max_new_tokens`."""

WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "audio": (),
        "frequency_penalty": (0,),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "presence_penalty": (0,),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "stop": ([],),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (),
        "verbosity": (),
        "web_search_options": (),
    }
)
"""OpenAI's fields that are not supported, with the values that are accepted because they ask for nothing;
null is accepted for all."""


def read_options(body: Mapping[str, Any]) -> RequestParameters:
    """The options of the request. Raises FieldError for a wrong value, and for a field that is unknown or not
    supported.

    Without `do_sample`, a `temperature` turns sampling on, or off if it is 0; without both, a `top_p` below 1
    turns it on.
    """
    options: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in (*READ, *IGNORED):
            continue
        if name in WITHOUT_EFFECT:
            _refuse(name, value)
        elif name in LENGTHS:
            _set_length(options, body, name, value)
        elif name in RequestParameters.model_fields:
            options[name] = value
        else:
            known = (*READ, *LENGTHS, *RequestParameters.model_fields)
            raise FieldError(name[:60], unknown_name("field", name, known))
    try:
        return read_request_parameters(_with_sampling(options))
    except OptionError as error:
        sent = next((name for name in LENGTHS if body.get(name) is not None), "max_new_tokens")
        message = str(error).replace("max_new_tokens", sent)
        named = next((name for name in body if message.startswith(f"{name} ")), None)
        raise FieldError(named, message) from error


def read_answer_as(body: Mapping[str, Any]) -> Kind | None:
    """How the answer to a prompt is read; None: the text must name a task. Raises FieldError."""
    wanted = body.get("answer_as")
    if wanted is None:
        return None
    try:
        return read_kind(wanted)
    except TaskError as error:
        raise FieldError("answer_as", str(error)) from None


def read_flag(fields: Mapping[str, Any], name: str, inside: str = "") -> bool:
    """A field that is true or false; False where it is left out. `inside`: the path of the object that it is
    in, with a dot at the end. Raises FieldError."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise FieldError(inside + name, f"{inside}{name} must be true or false, got {quote(value)}")
    return bool(value)


def read_include_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream ends with its usage. `include_obfuscation` asks for padding, and is ignored. Raises
    FieldError."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise FieldError("stream_options", f"stream_options must be an object, got {quote(options)}")
    if not body.get("stream"):
        raise FieldError("stream_options", "stream_options is for stream=true; leave it out")
    if unknown := options.keys() - {"include_usage", "include_obfuscation"}:
        name = f"stream_options.{min(unknown)[:60]}"
        raise FieldError(name, f"{name} is not supported; leave it out", UNSUPPORTED)
    return read_flag(options, "include_usage", "stream_options.")


def _refuse(name: str, value: Any) -> None:
    for harmless in WITHOUT_EFFECT[name]:
        if value == harmless and isinstance(value, bool) == isinstance(harmless, bool):
            return
    raise FieldError(name, f"{name} is not supported, got {quote(value)}; leave it out", UNSUPPORTED)


def _set_length(options: dict[str, Any], body: Mapping[str, Any], name: str, value: Any) -> None:
    for other in (*LENGTHS, "max_new_tokens"):
        if other != name and body.get(other) is not None:
            raise FieldError(name, f"{name} and {other} mean the same; send one of them")
    options["max_new_tokens"] = value


def _with_sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The options with `do_sample`, where temperature or top_p imply it; without those that then have no
    effect."""
    temperature, share = options.get("temperature"), options.get("top_p")
    draws = options.get("do_sample")
    if draws is None and (temperature is not None or share is not None):
        draws = share != 1 if temperature is None else temperature != 0 or isinstance(temperature, bool)
        options = {**options, "do_sample": draws}
    if draws is True:
        return options
    dropped = ("seed",) if draws is None else OF_SAMPLING
    return {name: value for name, value in options.items() if name not in dropped}
