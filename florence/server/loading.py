"""What a worker loads: the checkpoint that the settings name, on one of the devices that there are.

The supervisor downloads it once, and counts GPUs by the driver, without torch. Knows the settings; nothing
about requests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from florence.engine.observer import Observer
from florence.errors import FlorenceError, SettingsError, words_of
from florence.server.keys import caller
from florence.server.supervisor import end_worker
from florence.settings import Settings

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2

SPINS: Final = "10000"  # spin-loop turns, a few microseconds: as long as one operation of a step lasts


def fetch_checkpoint(settings: Settings) -> None:
    """Download the checkpoint's files once for all workers. Ends the process where that fails."""
    from florence.checkpoint.adapter_list import adapters_of_settings, list_adapters
    from florence.checkpoint.hub import resolve_adapter, resolve_checkpoint

    with _named(settings, "model", "revision", "base"):
        resolve_checkpoint(settings.model, settings.revision, settings.base)
    with _named(settings, "adapter"):
        if settings.adapter:
            resolve_adapter(settings.adapter)
    with _named(settings, "adapters", "adapters_file"):
        if sources := adapters_of_settings(settings.adapters, settings.adapters_file):
            for source in list_adapters(sources, settings.max_adapters).values():
                resolve_adapter(source)


@contextmanager
def _named(settings: Settings, *names: str) -> Iterator[None]:
    """A context that ends the process where what these settings name can't be had. The message begins with
    those that are set; that of a SettingsError names them already."""
    try:
        yield
    except (FlorenceError, OSError) as error:
        named = "" if isinstance(error, SettingsError) else f"{settings.told(*names)}: "
        sys.exit(f"florence: {named}{words_of(error)}")


def load_model(settings: Settings, device: str, observer: Observer) -> Florence2:
    """The checkpoint that the settings name, loaded on a device and warmed up."""
    let_threads_sleep()
    from florence import Florence2  # torch comes with it

    workers = len(settings.devices(count_gpus()))
    model = Florence2.from_settings(
        settings, device, workers=workers, observer=observer, on_broken=end_worker, owner=caller
    )
    model.warm_up()
    return model


def let_threads_sleep() -> None:
    """Call before torch is imported: makes its idle threads sleep instead of spin, because the event loop and
    the readers of pictures need the same cores. OpenMP's own variables take precedence."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def count_gpus() -> int:
    """GPUs that CUDA shows to the workers; 0 without a driver."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return count_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), int(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def count_visible(visible: str | None, there: int) -> int:
    """How many of the machine's GPUs CUDA_VISIBLE_DEVICES leaves visible: CUDA reads indexes, and names such
    as GPU-... and MIG-..., up to the first index that no GPU has."""
    if visible is None:
        return there
    names = [name.strip() for name in visible.split(",")]
    known = [int(name) < there if name.isdecimal() else name.startswith(("GPU-", "MIG-")) for name in names]
    return [*known, False].index(False)
