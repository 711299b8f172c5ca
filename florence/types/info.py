"""The descriptions of a running model and of its service, as `/info` returns them.

Plain types, shared by service and client; `Florence2.info` returns the model's part as a dict.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from florence.types.declared import DeclaredTask
from florence.types.options import GenerationParameters
from florence.types.results import config_with_example

_EXAMPLE = {
    "checkpoint": "mrhendrey/Florence-2-large-ft-safetensors",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "adapter": None,
    "adapters": [],
    "parameters": 776_465_408,
    "device": "cuda:0",
    "dtype": "bfloat16",
    "encode_stream": "on",
    "picture_size": [768, 768],
    "limits": {
        "max_new_tokens": 1024,
        "max_prompt_tokens": 512,
        "max_image_bytes": 20_971_520,
        "max_image_pixels": 64_000_000,
        "max_image_side": 65_535,
        "max_image_frames": 1000,
        "decode_memory_bytes": 536_870_912,
        "max_tiles": 128,
        "max_batch_size": 64,
        "max_encode_batch": 16,
        "max_queue": 256,
        "max_latency_ms": None,
        "encode_budget_ms": 250.0,
        "timeout_s": 300.0,
        "max_body_bytes": 67_108_864,
    },
    "generation": {
        "num_beams": 3,
        "max_new_tokens": 1024,
        "min_new_tokens": 0,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "length_penalty": 1.0,
        "repetition_penalty": 1.0,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "seed": None,
        "forced_bos_id": 0,
        "forced_eos_id": 2,
    },
    "tasks": ["<CAPTION>", "<OD>"],
    "declared_tasks": [],
    "version": "0.1.0",
}


class RequestLimits(BaseModel):
    """What one request may ask, and how many are worked on at once, in one worker; each under the name of its
    setting, in lower case and without FLORENCE_."""

    model_config = ConfigDict(frozen=True)

    max_new_tokens: int = Field(
        description="Maximum number of tokens of an answer, even if a request allows more."
    )
    max_prompt_tokens: int = Field(description="Maximum number of tokens of a prompt, without the picture's.")
    max_image_bytes: int = Field(description="Maximum size of an encoded picture in bytes.")
    max_image_pixels: int = Field(description="Maximum number of pixels of a picture.")
    max_image_side: int = Field(description="Maximum length of a picture's longer side in pixels.")
    max_image_frames: int = Field(description="Maximum number of frames or pages of a picture.")
    decode_memory_bytes: int = Field(description="Bytes of memory for decoding, in all readers together.")
    max_tiles: int = Field(description="Maximum number of tiles of a picture that is cut.")
    max_batch_size: int = Field(description="Maximum number of requests that are decoded together.")
    max_encode_batch: int = Field(description="Maximum number of pictures that are encoded together.")
    max_queue: int = Field(description="Maximum number of waiting requests.")
    max_latency_ms: float | None = Field(description="Longest wait, milliseconds; null: no limit.")
    encode_budget_ms: float = Field(
        description="How long an encode may delay the next decode step, milliseconds."
    )


class ServiceLimits(RequestLimits):
    """The same, and what a service limits besides."""

    timeout_s: float = Field(description="Time limit of a request, seconds.")
    max_body_bytes: int = Field(description="Maximum size of a request's body in bytes.")


class GenerationSettings(GenerationParameters):
    """How the model generates where a request does not say; no option is null here but `seed`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    forced_bos_id: int | None = Field(description="First token of every answer; null: not forced.")
    forced_eos_id: int | None = Field(
        description="Last token of an answer that reaches its limit; null: not forced."
    )


class AdapterInfo(BaseModel):
    """An adapter that a request may name."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name in requests.")
    source: str = Field(description="A hub id with its commit, or a directory.")
    rank: int = Field(description="The highest rank of its layers.")
    tasks: list[str] = Field(default=[], description="Tokens of the tasks that it declares.")


class ModelInfo(BaseModel):
    """The checkpoint and how it runs."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str = Field(description="A hub id, a directory, or demo.")
    revision: str | None = Field(
        description="The commit of a checkpoint from the hub; null: not from the hub."
    )
    adapter: str | None = Field(
        default=None, description="The LoRA adapter that is merged into the weights; null: none."
    )
    adapters: list[AdapterInfo] = Field(
        default=[], description="The LoRA adapters that a request may name, beside the weights."
    )
    parameters: int = Field(description="Number of parameters.")
    device: str = Field(description="cpu, or cuda:<n>.")
    dtype: str = Field(description="Type of the weights.")
    encode_stream: Literal["auto", "on", "off"] = Field(
        default="off",
        description="Whether encodes run beside decode steps, on a stream of a GPU's own; auto: not decided "
        "yet.",
    )
    picture_size: tuple[int, int] = Field(
        description="Height and width that pictures are resized to, pixels."
    )
    limits: RequestLimits
    generation: GenerationSettings
    tasks: list[str] = Field(description="The tasks' tokens.")
    declared_tasks: list[DeclaredTask] = Field(
        default=[],
        description="Those of the tasks that the checkpoint or an adapter declares, beside the "
        "built-in ones.",
    )


class ServiceInfo(ModelInfo):
    """What `GET /info` answers: the model of the worker that answers, with the service's limits."""

    model_config = config_with_example(_EXAMPLE)

    limits: ServiceLimits
    version: str = Field(description="The version of florence.")
