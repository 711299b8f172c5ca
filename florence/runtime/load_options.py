"""Declares what a model is loaded with: the options of `Florence2.load`, each with its default, as one frozen
value that travels through the load.

Knows nothing about checkpoints' files. The service's settings of the same names have the same defaults,
except where a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from florence.checkpoint.adapter_list import AdapterSources
from florence.engine.config import EngineConfig
from florence.engine.observer import Observer
from florence.images.limits import DEFAULT_LIMITS, ImageLimits
from florence.images.tiles import MAX_TILES
from florence.model.devices import pick_device
from florence.runtime.shares import no_owner
from florence.types.pictures import Pictures
from florence.types.tasks import Task


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions`, which describes them, as keyword arguments. An option that is None has its
    default."""

    revision: str | None
    base: str | None
    adapter: str | None
    adapters: AdapterSources | None
    max_adapters: int
    max_adapter_rank: int
    input_size: int | None
    device: str
    dtype: str
    limits: ImageLimits | None
    config: EngineConfig | None
    threads: int | None
    readers: int
    fast_jpeg: bool
    pictures: Pictures
    observer: Observer | None
    on_broken: Callable[[], None] | None
    tasks: Sequence[Task] | str | None
    score_temperature: float
    owner: Callable[[], str]
    owner_share: float
    max_tiles: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What a model is loaded with. A new option is declared here and in `LoadKeywords`; a setting of the same
    name reaches it automatically."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    base: str | None = None
    """A checkpoint whose tokenizer and preprocessor are used if this one has none."""
    adapter: str | None = None
    """A LoRA adapter, a directory or a hub id, which is merged into the weights."""
    adapters: AdapterSources | None = None
    """LoRA adapters that a request may name (`adapter="receipts"`): name -> directory or hub id, or the path
    of a file that lists them."""
    max_adapters: int = 8
    """Maximum number of `adapters`."""
    max_adapter_rank: int = 64
    """Maximum rank of each of `adapters`."""
    input_size: int | None = None
    """Side in pixels of the square that pictures are resized to, a multiple of 32; None: as the preprocessor
    says."""
    device: str = "auto"
    """Where the model runs: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:1"."""
    dtype: str = "auto"
    """Precision: "auto" (bfloat16 where the processor is faster with it, else float32), "float32",
    "bfloat16", "float16", "int8" (linear layers, on a CPU with VNNI) or "fp8" (most layers of an encode, on a
    GPU of sm_89 or newer; a CPU emulates it)."""
    limits: ImageLimits = DEFAULT_LIMITS
    """Limits on pictures."""
    config: EngineConfig | None = None
    """Configuration of the engine; None: the device's defaults."""
    threads: int | None = None
    """CPU threads of the model; None: as the configuration says."""
    readers: int = 0
    """Processes that read pictures, so that a crash or a decompression bomb in a decoder fails one request;
    0: threads of this process. A service always has processes, and chooses their number by the device."""
    fast_jpeg: bool = False
    """Decode large JPEGs at reduced size, which changes pixels a little."""
    pictures: Pictures = "seen"
    """How pictures become RGB where a request does not say: "seen", as a viewer shows them, or "original", as
    the original's processor does it."""
    observer: Observer = field(default_factory=Observer)
    """Gets the engine's events."""
    on_broken: Callable[[], None] | None = None
    """Called when the engine has failed and can't recover."""
    tasks: Sequence[Task] | str | None = None
    """The checkpoint's tasks beside the built-in ones, or as FLORENCE_TASKS names them; None: those of the
    file `florence_tasks.json` beside the checkpoint."""
    score_temperature: float = 1.0
    """Divides the log-odds of scores; above 0."""
    owner: Callable[[], str] = no_owner
    """Returns a request's owner; called in the thread and context that submit the request."""
    owner_share: float = 1.0
    """Share of the queue for the requests of one owner, 0 to 1. A service, whose owners are its API keys, has
    the setting `key_queue_share` in its place: half of the queue, so that one key leaves room for others."""
    max_tiles: int = MAX_TILES
    """Maximum number of tiles of one picture; at most one owner's share of the queue."""

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's configuration on this device, with `threads`. Raises `SettingsError`."""
        config = self.config or EngineConfig.for_device(pick_device(self.device).type)
        return config if self.threads is None else replace(config, threads=self.threads)

    @property
    def owner_limit(self) -> int:
        """Maximum number of one owner's waiting requests."""
        return max(1, int(self.owner_share * self.engine_config.max_queue))

    @property
    def tile_limit(self) -> int:
        """Maximum number of tiles of one picture, each of which takes a place in the queue."""
        return max(1, min(self.max_tiles, self.owner_limit))
