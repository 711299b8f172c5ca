"""All that is made anew after a fault of the device: slots, caches, searches, and the work captured over
them.

Chooses the layout that suits the device; knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from florence.engine.adapters import AdapterSlots
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import TokenRules
from florence.engine.device.beams.search_state import SearchState
from florence.engine.device.capture.bucket_steps import BucketSteps
from florence.engine.device.capture.buckets import Buckets
from florence.engine.device.encode.encodes import BucketEncodes, Encodes
from florence.engine.device.readback import StepReadback
from florence.engine.device.steps import DenseSteps, RaggedSteps, StepContext, Steps
from florence.engine.slots import Slot, SlotAllocator
from florence.model.caches import Caches, CacheSizes
from florence.model.florence2 import Florence2Model


@dataclass(slots=True)
class Buffers:
    """`latest`: the readback of the last step, where readbacks are delayed. `to_wipe`: free slots that may
    hold NaN."""

    slots: SlotAllocator
    adapters: AdapterSlots
    caches: Caches
    state: SearchState
    steps: Steps
    encodes: Encodes
    latest: StepReadback | None = None
    to_wipe: list[Slot] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all requests."""
        self.slots = SlotAllocator(self.caches.sizes.slots, self.caches.sizes.rows)
        self.latest = None
        self.to_wipe.clear()


def make_buffers(
    model: Florence2Model,
    backend: Backend,
    sizes: CacheSizes,
    rules: TokenRules,
    buckets: Callable[[], Buckets],
    *,
    lazy: bool,
) -> Buffers:
    """Buffers without requests. `buckets`: makes the shapes, called only where work is captured. `lazy`: as
    `Caches` has it."""
    text = model.config.text
    caches = Caches(sizes, text.decoder, text.d_model, model.device, model.dtype, lazy=lazy)
    backend.encode_stream.hold(caches.buffers)
    state = SearchState(
        sizes.slots,
        sizes.decoder_room,
        rules,
        model.device,
        rows=sizes.rows,
        free_host_reads=backend.free_host_reads,
    )
    adapters = AdapterSlots(model.adapters, backend.encode_stream.wait)
    work = uncaptured_work(model, backend, caches, state, buckets)
    return Buffers(SlotAllocator(sizes.slots, sizes.rows), adapters, caches, state, *work)


def uncaptured_work(
    model: Florence2Model,
    backend: Backend,
    caches: Caches,
    state: SearchState,
    buckets: Callable[[], Buckets],
) -> tuple[Steps, Encodes]:
    """Steps and encodes in the layout that suits the device; nothing is captured yet."""
    memory = backend.memory
    context = StepContext(model, caches, state, backend.attention, backend.search)
    if backend.capturer is not None:
        shapes, stream = buckets(), backend.encode_stream
        steps = BucketSteps(context, memory, shapes, backend.capturer)
        capturer = stream.capturer or backend.capturer
        return steps, BucketEncodes(model, caches, memory, shapes, capturer, backend.encode, stream)
    encodes = Encodes(model, caches, memory, backend.encode)
    if backend.attention.masked:
        return DenseSteps(context, memory), encodes
    return RaggedSteps(context, memory), encodes
