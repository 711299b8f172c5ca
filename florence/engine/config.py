"""The engine's configuration: batches, queue, room for tokens, threads and memory, in one frozen value.

Each field's default, bounds and description stand here only; `florence.settings` and `/info` read them from
here. Imports neither torch nor pydantic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal

from florence.errors import SettingsError

KernelChoice = Literal["auto", "off"]
"""Whether the project's kernels are used where they can be, or PyTorch's operations everywhere."""

EncodeStreamChoice = Literal["auto", "on", "off"]
"""Whether encodes run on a stream of their own, beside decode steps; `auto`: a trial at the start decides."""

DEFAULT_MAX_NEW_TOKENS: Final = 1024
"""What Microsoft's examples and the deployments in use ask for; the original's own limit is 20 tokens."""

DEFAULT_ENCODE_BUDGET_MS: Final = 250.0

DEFAULT_PICTURE_CACHE_BYTES: Final = 128 * 2**20
"""Room for the features of about a hundred pictures of Florence-2-large in bfloat16."""

GPU_PICTURE_CACHE_BYTES: Final = 2 * 2**30
"""Room for the features of about 1,800 such pictures: a few minutes of requests."""

_BOUNDS: Final[Mapping[str, tuple[Callable[[Any, Any], bool], str]]] = MappingProxyType(
    {
        "ge": (operator.ge, "greater than or equal to"),
        "gt": (operator.gt, "greater than"),
        "le": (operator.le, "less than or equal to"),
    }
)


def _declare(default: Any, description: str, *, on_gpu: Any = None, **bounds: float) -> Any:
    """A field. `on_gpu`: its default on a GPU, None if it is the same. `bounds`: `ge`, `gt` and `le`, as in
    pydantic; a value of None is not checked."""
    return field(default=default, metadata={"description": description, "on_gpu": on_gpu, "bounds": bounds})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One engine's configuration. The fields' defaults are those of a CPU; `for_device` has those of any
    device.

    Raises `SettingsError` for a value out of bounds.
    """

    max_batch_size: int = _declare(
        16,
        "Requests that decode together in a worker; fewer where a GPU has no memory for so many. "
        "Default: 16 on a CPU, 64 on a GPU.",
        on_gpu=64,
        ge=1,
        le=1024,
    )
    max_encode_batch: int = _declare(
        4,
        "Maximum number of pictures that a worker encodes together; fewer where that takes longer than the "
        "encode budget, or more memory than a GPU has. Default: 4 on a CPU, 16 on a GPU.",
        on_gpu=16,
        ge=1,
        le=1024,
    )
    max_queue: int = _declare(
        256,
        "Requests that may wait in a worker, those whose pictures are still being read among them; more get "
        "a 503.",
        ge=1,
        le=100_000,
    )
    max_latency_ms: float | None = _declare(
        None,
        "A request that would wait for longer is refused at once, with a 503; default: no limit.",
        gt=0,
        le=86_400_000,
    )
    encode_budget_ms: float = _declare(
        DEFAULT_ENCODE_BUDGET_MS,
        "How long an encode of new pictures may delay the next decode step.",
        gt=0,
        le=60_000,
    )
    max_new_tokens: int = _declare(
        DEFAULT_MAX_NEW_TOKENS,
        "Tokens of the longest answer: memory for this many tokens is reserved for each beam, and longer "
        "answers are cut (`finish_reason`: `length`), whatever a request allows. At most the checkpoint's "
        "positions.",
        ge=1,
        le=100_000,
    )
    max_prompt_tokens: int = _declare(
        512,
        "Tokens of the longest prompt, for which memory is reserved beside the picture; longer ones get a "
        "400. At most the checkpoint's positions.",
        ge=1,
        le=100_000,
    )
    threads: int | None = _declare(
        None, "CPU threads of one worker's model; default: PyTorch's choice.", ge=1, le=1024
    )
    cpu_kernels: KernelChoice = _declare(  # noqa: RUF009  (a field)
        "auto",
        "`off`: compute with PyTorch's own operations only, not with the project's kernels for CPUs. In "
        "float32 token ids are the same.",
    )
    cuda_kernels: KernelChoice = _declare(  # noqa: RUF009  (a field)
        "auto",
        "`off`: encode and take decode steps with PyTorch's own operations only, not with the project's "
        "kernels for GPUs. In float32 token ids are the same.",
    )
    compile_tower: bool = _declare(
        False,
        "On a GPU, let `torch.compile` fuse the operations of the vision tower, in place of the project's "
        "kernels; it compiles for minutes at each start.",
    )
    encode_stream: EncodeStreamChoice = _declare(  # noqa: RUF009  (a field)
        "auto",
        "On a GPU, whether encodes run on a stream of their own, so that no decode step waits for one: `on`, "
        "`off`, or `auto`, which tries both at the start and takes the quicker one, `off` if answers differ.",
    )
    picture_cache_bytes: int = _declare(
        DEFAULT_PICTURE_CACHE_BYTES,
        "Memory of a worker for the tower's output of the latest pictures. Default: 128 MiB on a CPU; on a "
        "GPU 2 GiB, or a sixteenth of the free memory if that is less.",
        on_gpu=GPU_PICTURE_CACHE_BYTES,
        ge=0,
        le=2**40,
    )
    reserved: bool = _declare(
        False, "Allocate the memory of a full engine at the start, rather than when requests first need it."
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            for name, bound in each.metadata["bounds"].items():
                holds, words = _BOUNDS[name]
                if value is not None and not holds(value, bound):
                    raise SettingsError(f"{each.name} must be {words} {bound}, got {value}")

    @classmethod
    def for_device(cls, kind: str, **values: Any) -> EngineConfig:
        """The configuration with these values, and the defaults of `kind` ("cpu" or "cuda") for the rest: a
        GPU's batches are larger, since a large one takes it as long as a small one."""
        gpu = {each.name: each.metadata["on_gpu"] for each in fields(cls) if each.metadata["on_gpu"]}
        return cls(**{**(gpu if kind == "cuda" else {}), **values})
