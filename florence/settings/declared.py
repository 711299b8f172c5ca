"""All settings, each with its default, bounds and description.

Those of the engine and the limits on pictures are declared in `florence.engine.config` and
`florence.images.limits`.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from florence.engine.config import EncodeStreamChoice, EngineConfig, KernelChoice
from florence.errors import SettingsError
from florence.images.limits import ImageLimits
from florence.images.tiles import MAX_TILES
from florence.settings.names import explain
from florence.types.environment import PREFIX
from florence.types.pictures import Pictures
from florence.types.precision import Precision

_ORIGIN = re.compile(r"(\*|null|[a-z][a-z0-9+.-]*://([^\s/?#*@:\[\]]+|\[[0-9a-f:.]+\])(:\d+)?/?)?")

MIB = 1024 * 1024

_DEVICES = re.compile(r"auto|cuda|(cpu|cuda:\d+)(,(cpu|cuda:\d+))*")


def _declared(owner: type[EngineConfig | ImageLimits], name: str) -> Any:
    """The field of this name as `owner` declares it; its default is None where that depends on the device."""
    declared = next(each for each in fields(owner) if each.name == name)
    facts = declared.metadata
    default = None if facts.get("on_gpu") else declared.default
    return Field(default=default, description=facts["description"], **facts["bounds"])


class Settings(BaseSettings):
    """All settings; each field is the variable `FLORENCE_<NAME>`. An empty variable counts as not set.

    Raises `SettingsError`, which names the setting that is unknown or out of range. Values given by keyword
    take precedence over the environment.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    model: str = Field(
        default="microsoft/Florence-2-large-ft",  # what the Triton deployment that this replaces served
        description="Checkpoint: a hub id, `owner/name:folder`, a directory, or `demo`, the small one in the "
        "package.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    tasks: str | None = Field(
        default=None,
        description="The checkpoint's own tasks: JSON files or the presets `promptgen`, `description`, "
        "`docvqa` and `vqa`, separated by commas; default: `florence_tasks.json` beside the checkpoint.",
    )
    prompts: Literal["tasks", "any"] = Field(
        default="tasks",
        description="What v2 takes as TASK_PROMPT: `tasks` only, or `any` text; what is not a task is then a "
        "prompt, read verbatim.",
    )
    base: str | None = Field(
        default=None,
        description="Checkpoint to take the tokenizer and the preprocessor from, if `FLORENCE_MODEL` lacks "
        "them.",
    )
    adapter: str | None = Field(
        default=None,
        description="LoRA adapter that is merged into the weights at the start: a hub id or a directory.",
    )
    adapters: str | None = Field(
        default=None,
        description="LoRA adapters that requests may name, beside the weights: `name=source`, separated by "
        "commas; a source is a hub id or a directory.",
    )
    adapters_file: Path | None = Field(
        default=None,
        description="The same in a file, one `name=source` a line; it is read again when it changes.",
    )
    max_adapters: int = Field(
        default=8, ge=1, le=64, description="Maximum number of adapters that requests may name."
    )
    max_adapter_rank: int = Field(
        default=64, ge=1, le=1024, description="Highest rank of an adapter that requests may name."
    )
    input_size: int | None = Field(
        default=None,
        ge=32,
        le=2**16,
        description="Pixels of the square that pictures are resized to, a multiple of 32; default: as the "
        "checkpoint's preprocessor says.",
    )
    device: str = Field(
        default="auto",
        description="`auto` (all GPUs, else the CPU), `cpu`, `cuda` (all GPUs), `cuda:1`, or a list such as "
        "`cuda:0,cuda:1`: one worker for each.",
    )
    dtype: Precision = Field(
        default="auto",
        description="Type of the weights; `auto`: bfloat16 where the processor is faster with it than with "
        "float32, else float32. `int8`: linear layers in int8, on a CPU with VNNI. `fp8`: most of an encode "
        "in fp8, on a GPU from Ada or Hopper on, not yet measured on one; a CPU emulates it, slowly.",
    )
    threads: int | None = _declared(EngineConfig, "threads")
    cpu_kernels: KernelChoice = _declared(EngineConfig, "cpu_kernels")
    cuda_kernels: KernelChoice = _declared(EngineConfig, "cuda_kernels")
    compile_tower: bool = _declared(EngineConfig, "compile_tower")
    encode_stream: EncodeStreamChoice = _declared(EngineConfig, "encode_stream")
    max_batch_size: int | None = _declared(EngineConfig, "max_batch_size")
    max_encode_batch: int | None = _declared(EngineConfig, "max_encode_batch")
    max_queue: int = _declared(EngineConfig, "max_queue")
    max_latency_ms: float | None = _declared(EngineConfig, "max_latency_ms")
    encode_budget_ms: float = _declared(EngineConfig, "encode_budget_ms")
    max_new_tokens: int = _declared(EngineConfig, "max_new_tokens")
    max_prompt_tokens: int = _declared(EngineConfig, "max_prompt_tokens")
    picture_cache_bytes: int | None = _declared(EngineConfig, "picture_cache_bytes")
    grpc_port: int = Field(
        default=8001, ge=0, le=65_535, description="Port of the v2 protocol over gRPC; 0 for none."
    )
    grpc_host: str | None = Field(
        default=None, description="Address that the gRPC port listens on; default: where HTTP listens."
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="Certificate with its chain, in PEM: with it HTTP and gRPC speak TLS; default: none.",
    )
    tls_key: Path | None = Field(default=None, description="The certificate's key, without a passphrase.")
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys as `name:key`, separated by commas; requests need one of them then. A key has "
        "at least 32 characters.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="The same in a file, one `name:key` a line; it is read again when it changes.",
    )
    key_queue_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of `FLORENCE_MAX_QUEUE` that the waiting requests of one API key may take; more "
        "get a 503.",
    )
    open_metrics: bool = Field(default=True, description="Whether `/metrics` needs no API key.")
    timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Time limit of a request, seconds; after that it gets a 504.",
    )
    max_body_bytes: int = Field(
        default=64 * MIB,
        ge=1024,
        le=2**31,
        description="Maximum size of a request's body in bytes; larger ones get a 413.",
    )
    body_memory_bytes: Annotated[int, Field(ge=1024, le=2**40)] | None = Field(
        default=None,
        description="Memory for all request bodies of a worker, each from its first byte to its answer; a "
        "body that does not fit gets a 503. Default: four times `FLORENCE_MAX_BODY_BYTES`, and never less "
        "than twice.",
    )
    head_timeout_s: float = Field(
        default=15.0, gt=0, le=3600, description="Seconds for the head of an HTTP request to arrive."
    )
    body_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="Seconds for the body of an HTTP request to arrive; also, after as long without reading, "
        "a client that has not read its whole answer is disconnected.",
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=10**6,
        description="Maximum number of HTTP connections of a worker. Beyond it the connection that has been "
        "idle for longest is closed; if none is idle, a new one gets a 503.",
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins whose pages may call the service from a browser, such as "
        "`https://a.example,https://b.example`, or `*` for any; default: none.",
    )
    playground: Literal["on", "off"] = Field(
        default="on", description="`off`: without the page `/ui`, on which tasks are tried in a browser."
    )
    image_hosts: str | None = Field(
        default=None, description="Hosts that `image_url` may name, separated by commas; default: none."
    )
    image_networks: str | None = Field(
        default=None,
        description="Networks (CIDR) with addresses that those hosts may have, beside public addresses.",
    )
    max_image_bytes: int = _declared(ImageLimits, "max_bytes")
    max_image_pixels: int = _declared(ImageLimits, "max_pixels")
    max_image_side: int = _declared(ImageLimits, "max_side")
    max_image_frames: int = _declared(ImageLimits, "max_frames")
    decode_memory_bytes: int = _declared(ImageLimits, "decode_bytes")
    max_tiles: int = Field(
        default=MAX_TILES,
        ge=1,
        le=4096,
        description="Maximum number of tiles of a picture that is cut (`tiles`). Each tile counts as a "
        "request in the queue, so this is at most `FLORENCE_MAX_QUEUE` times `FLORENCE_KEY_QUEUE_SHARE`.",
    )
    readers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Processes of a worker that read pictures; default: 2 on a CPU, on a GPU the worker's "
        "share of the cores less two.",
    )
    fast_jpeg: bool = Field(
        default=False,
        description="Decode JPEGs of at least twice the model's input size at a half, a quarter or an eighth "
        "of their size: faster, and pixels differ a little.",
    )
    pictures: Pictures = Field(
        default="seen",
        description="How pictures become RGB at the typed endpoints: `seen`, as a viewer shows them, or "
        "`original`, as the original's processor does it.",
    )
    v2_pictures: Pictures = Field(default="original", description="The same for the v2 protocol.")
    score_temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Divides the log-odds of scores: above 1 for an overconfident checkpoint, below 1 for an "
        "underconfident one.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="`json` writes each line of the log as a JSON object."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`info` writes a line for each answer, `warning` only what went wrong."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            known = cls.model_fields
            raise SettingsError("; ".join(explain(detail, known) for detail in error.errors())) from error

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        device = device.strip().lower().replace(" ", "")
        if not _DEVICES.fullmatch(device):
            raise ValueError("must be auto, cpu, cuda, cuda:<n> or a list such as cuda:0,cuda:1")
        return device

    @field_validator("cors_origins")
    @classmethod
    def _whole_origins(cls, origins: str | None) -> str | None:
        """Refuse what is never equal to a browser's Origin header, such as a name without https://."""
        for origin in (origins or "").lower().split(","):
            if not _ORIGIN.fullmatch(origin.strip()):
                raise ValueError("must be origins such as https://a.example:8443, or *")
        return origins and origins.lower()

    @field_validator("grpc_port", mode="before")
    @classmethod
    def _not_from_kubernetes(cls, port: object) -> object:
        """Ignore the address that Kubernetes puts into FLORENCE_GRPC_PORT for a Service called
        `florence-grpc`."""
        is_address = isinstance(port, str) and "://" in port
        return cls.model_fields["grpc_port"].default if is_address else port

    @field_validator("model")
    @classmethod
    def _named_model(cls, model: str) -> str:
        if not (model := model.strip()):
            raise ValueError("must name a checkpoint: a hub id, a directory, or demo")
        return model

    def told(self, *names: str) -> str:
        """Those of these settings that are set, for a message: FLORENCE_MODEL=demo, FLORENCE_BASE=other."""
        values = ((name, getattr(self, name)) for name in names)
        return ", ".join(f"{PREFIX}{name.upper()}={value}" for name, value in values if value)[:300]

    @property
    def first_device(self) -> str:
        """The device of a program that loads one model: the first of a list."""
        return self.device.partition(",")[0]

    def devices(self, gpus: int) -> list[str]:
        """The device of each worker, on a machine with `gpus` GPUs. Raises SettingsError if one does not
        exist."""
        if self.device in ("auto", "cuda"):
            if self.device == "cuda" and gpus == 0:
                raise SettingsError("FLORENCE_DEVICE=cuda, but this machine shows no CUDA device")
            return [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
        devices = self.device.split(",")
        for device in devices:
            if device != "cpu" and int(device.removeprefix("cuda:")) >= gpus:
                raise SettingsError(
                    f"FLORENCE_DEVICE names {device}, but this machine shows {gpus} CUDA devices"
                )
        return devices

    def engine_config(self, kind: str, *, reserved: bool = False) -> EngineConfig:
        """The engine's part, with the defaults that suit a kind of device: "cpu" or "cuda"."""
        names = {each.name for each in fields(EngineConfig)} & type(self).model_fields.keys()
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return EngineConfig.for_device(kind, reserved=reserved, **values)

    def without_secrets(self) -> Settings:
        """The same settings without secrets, which only a service needs."""
        return self.model_copy(update={name: None for name, value in self if isinstance(value, SecretStr)})

    @property
    def body_budget_bytes(self) -> int:
        """Bytes that the request bodies of a worker may take together."""
        return max(self.body_memory_bytes or 4 * self.max_body_bytes, 2 * self.max_body_bytes)

    @property
    def image_limits(self) -> ImageLimits:
        """The limits on pictures."""
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_side=self.max_image_side,
            max_frames=self.max_image_frames,
            decode_bytes=self.decode_memory_bytes,
        )
