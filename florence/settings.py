"""The service's settings: read once from `FLORENCE_*` environment variables, checked, then frozen.

Knows nothing about devices, models or HTTP: everything below the service gets these values as arguments. An
unknown `FLORENCE_*` name is refused, so that a misspelt setting never passes as a default. What BentoML
itself reads (`BENTOML_*`: port, host, log format) is not covered.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from florence.errors import SettingsError, quote

PREFIX = "FLORENCE_"
MIB = 1024 * 1024
PILLOW_MAX_PIXELS = 89_478_485  # above it Pillow warns of each picture, and `images` refuses the limit

# Kubernetes puts the address of a Service called `florence` into each pod's environment under these names.
_KUBERNETES = re.compile(r"FLORENCE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_DEVICES = re.compile(r"auto|cuda|(cpu|cuda:\d+)(,(cpu|cuda:\d+))*")


class Settings(BaseSettings):
    """All settings; each field is the variable `FLORENCE_<NAME>`. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    model: str = Field(
        default="mrhendrey/Florence-2-large-ft-safetensors",  # what the replaced Triton deployment served
        description="Checkpoint: a hub id, a directory, or `demo`, the small one in the package.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    device: str = Field(
        default="auto",
        description="`auto` (all GPUs, else the CPU), `cpu`, `cuda` (all GPUs), `cuda:1`, or a list such as "
        "`cuda:0,cuda:1`: one worker for each.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description="Type of the weights; `auto`: bfloat16 where the processor is faster with it than with "
        "float32, else float32. `int8`: linear layers in int8, on a CPU with VNNI.",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads of one worker's model; default: PyTorch's choice."
    )
    cpu_kernels: Literal["auto", "off"] = Field(
        default="auto",
        description="`off`: compute with PyTorch's own operations only, not with the project's kernels for "
        "CPUs. In float32 token ids are the same.",
    )
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Requests that decode together in a worker; default: 16 on a CPU, 64 on a GPU.",
    )
    max_encode_batch: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Most pictures that are encoded together in a worker; fewer where that takes longer than "
        "the encode budget. Default: 4 on a CPU, 16 on a GPU.",
    )
    max_queue: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Requests that may wait in a worker, those whose pictures are still being read "
        "among them; more get a 503.",
    )
    max_latency_ms: Annotated[float, Field(gt=0, le=86_400_000)] | None = Field(
        default=None,
        description="A request that would wait for longer is refused at once, with a 503; default: none is.",
    )
    encode_budget_ms: float = Field(
        default=250.0,
        gt=0,
        le=60_000,
        description="For how long new pictures may hold up the requests that are being decoded, at a time.",
    )
    max_new_tokens: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Tokens of the longest answer: a worker keeps room for so many for each beam, and cuts "
        "longer wishes to it (`finish_reason`: `length`). At most the checkpoint's positions.",
    )
    max_prompt_tokens: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="Tokens of the longest prompt, for which room is kept beside the picture; longer ones "
        "get a 400. At most the checkpoint's positions.",
    )
    picture_cache_bytes: int = Field(
        default=128 * MIB,
        ge=0,
        le=2**40,
        description="Memory of a worker for what the tower saw in the latest pictures.",
    )
    grpc_port: int = Field(
        default=8001, ge=0, le=65_535, description="Port of the v2 protocol over gRPC; 0 for none."
    )
    grpc_host: str = Field(
        default="0.0.0.0", description="Address that the gRPC port listens on; `bentoml serve` has its own."
    )
    timeout_s: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds after which a request is given up with a 504."
    )
    max_body_bytes: int = Field(
        default=64 * MIB, ge=1024, le=2**31, description="Most bytes of a request's body; more get a 413."
    )
    max_image_bytes: int = Field(
        default=20 * MIB, ge=1, le=2**31, description="Most bytes of an encoded picture."
    )
    max_image_pixels: int = Field(
        default=64_000_000, ge=1, le=PILLOW_MAX_PIXELS, description="Most pixels of a picture."
    )
    max_image_frames: int = Field(
        default=1000, ge=1, le=1_000_000, description="Most frames or pages of a picture."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`info` writes a line for each answer, `warning` only what went wrong."
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        device = device.strip().lower().replace(" ", "")
        if not _DEVICES.fullmatch(device):
            raise ValueError("must be auto, cpu, cuda, cuda:<n> or a list such as cuda:0,cuda:1")
        return device

    @field_validator("grpc_port", mode="before")
    @classmethod
    def _not_from_kubernetes(cls, port: object) -> object:
        """For a Service called `florence-grpc` Kubernetes puts its address into FLORENCE_GRPC_PORT."""
        is_address = isinstance(port, str) and "://" in port
        return cls.model_fields["grpc_port"].default if is_address else port

    @field_validator("model")
    @classmethod
    def _named_model(cls, model: str) -> str:
        if not (model := model.strip()):
            raise ValueError("must name a checkpoint: a hub id, a directory, or demo")
        return model

    def devices(self, gpus: int) -> list[str]:
        """The device of each worker, on a machine with that many GPUs; SettingsError if one is not there."""
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


def read_settings() -> Settings:
    """The settings from the environment. SettingsError names the variable that is unknown or out of range."""
    _refuse_unknown(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(dict(detail)) for detail in error.errors())) from error


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    unknown = [
        name
        for name, value in sorted(environ.items())
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _from_kubernetes(name, value)
    ]
    if unknown:
        raise SettingsError("; ".join(_suggest(name, known) for name in unknown))


def _from_kubernetes(name: str, value: str) -> bool:
    return bool(_KUBERNETES.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)


def _suggest(name: str, known: Iterable[str]) -> str:
    ends = [known_name.removeprefix(PREFIX) for known_name in known]
    close = difflib.get_close_matches(name.upper().removeprefix(PREFIX), ends, n=1)
    hint = f"did you mean {PREFIX}{close[0]}?" if close else f"the settings are {', '.join(known)}"
    return f"unknown setting {name}: {hint}"


def _explain(detail: dict[str, object]) -> str:
    """One pydantic error as `FLORENCE_X: what it must be, got what it is`."""
    location = detail["loc"]
    name = str(location[0]) if isinstance(location, tuple) and location else ""
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{PREFIX}{name.upper()}: {message}, got {quote(detail['input'])}"
