"""Runs requests on the device: encodes pictures and prompts, and takes decode steps.

Owns the model, the caches, the searches and their slots. Knows nothing about threads, queues, futures or time
limits.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from florence.engine.config import DEFAULT_PICTURE_CACHE_BYTES
from florence.engine.device.backend import Backend
from florence.engine.device.beams.reference import Hypothesis, TokenRules
from florence.engine.device.beams.search_state import DONE, FAULTY, RUNNING, SearchState, starts_of
from florence.engine.device.buffers import Buffers, make_buffers, uncaptured_work
from florence.engine.device.capture.buckets import Buckets, aligned
from florence.engine.device.capture.capturing import capture_all, memory_errors, try_attentions
from florence.engine.device.encode.features import FeatureCache
from florence.engine.device.encode.stream import EncodeStream
from florence.engine.device.encode.trial import try_encode_stream
from florence.engine.device.readback import StepReadback
from florence.engine.encode_policy import Decision
from florence.engine.faults import not_finite
from florence.engine.request import Request
from florence.engine.runner import StepRunner
from florence.engine.sequence import SequenceState, Wait
from florence.engine.slots import SlotAllocator
from florence.errors import EngineError
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import Chunks, within, yielding
from florence.model.decode import warm_up_products
from florence.model.florence2 import Florence2Model
from florence.types.bounds import MAX_BEAMS

log = logging.getLogger(__name__)

Outcome = Hypothesis | EngineError


class Runner(StepRunner):
    """A model on its device, with buffers to decode many requests at once.

    `slots`: requests that decode together; there are as many cache rows as they need with the checkpoint's
    own number of beams. `backend`: how steps run on the model's device. `picture_tokens`: tokens of one
    picture. `encode_batch`: most requests of an encode, None: `slots`. `picture_size`: height and width of
    pictures for which encodes are captured at the start, None to capture no encodes. `encoder_room`,
    `decoder_room`: positions of a slot and of a row, None for as many as the checkpoint has. `feature_bytes`:
    size of the feature cache. `reserved`: allocate at the start all memory that a full engine needs;
    otherwise a backend with `lazy_pages` allocates it on first use. `rules`: None for the checkpoint's own,
    with `ordered` as `TokenRules` has it.

    `encode_stream`: the stream of encodes; `decision`: why that one, None until `prepare` has run its trial.
    """

    def __init__(
        self,
        model: Florence2Model,
        slots: int = 16,
        *,
        backend: Backend | None = None,
        picture_tokens: int = 1,
        encode_batch: int | None = None,
        picture_size: tuple[int, int] | None = None,
        encoder_room: int | None = None,
        decoder_room: int | None = None,
        feature_bytes: int = DEFAULT_PICTURE_CACHE_BYTES,
        reserved: bool = False,
        rules: TokenRules | None = None,
        ordered: range | None = None,
    ) -> None:
        room = model.config.text.max_positions
        rows = max(MAX_BEAMS, slots * model.config.generation.num_beams)
        self.model = model
        self.backend = backend or Backend()
        self.features = FeatureCache(feature_bytes)
        self.rules = rules or TokenRules.of(model.config, ordered)
        encoder_room = encoder_room or room
        if self.backend.capturer is not None:
            encoder_room = min(aligned(encoder_room), room)
        self.sizes = CacheSizes(slots, rows, encoder_room, decoder_room or room)
        self.picture_tokens, self.picture_size = picture_tokens, picture_size
        self._encode_batch = min(encode_batch or slots, slots)
        self._reserved = reserved
        self._prepared = self._stale = False
        self.encode_stream = self.backend.encode_stream
        tries = self.backend.encode_budget_s is not None and self.backend.capturer is not None
        self.decision = None if tries else Decision(self.encode_stream.beside, "as it was set")
        self._sent: Wait = lambda: None  # waits for the latest chunk of an encode
        with memory_errors(slots, self._encode_batch):
            self.buffers = self._build()

    @property
    def chunks_ahead(self) -> int:
        return 1 if self.backend.delayed_readback else 0

    @property
    def slots(self) -> SlotAllocator:
        return self.buffers.slots

    def fits(self, requests: Iterable[Request]) -> int:
        wanted = list(requests)
        by_adapters = self.buffers.adapters.fits(each.adapter for each in wanted)
        fitting = self.slots.fits(each.options.num_beams for each in wanted[:by_adapters])
        return self.buffers.encodes.together(fitting)

    @property
    def caches(self) -> Caches:
        """Keys and values of all requests."""
        return self.buffers.caches

    @property
    def state(self) -> SearchState:
        """The searches of all slots."""
        return self.buffers.state

    def reset(self) -> None:
        """Drop all requests and make new buffers: after a fault of the device the old ones can't be trusted.
        Captures again what `prepare` captured.

        Raises whatever the device raises, if it is gone for good.
        """
        self._sent = lambda: None
        stream = self.backend.encode_stream
        stream.wait()  # encodes may still use the buffers
        del self.buffers  # first: the device has no room for old and new ones
        self.features.clear()
        gc.collect()  # captured work has reference cycles
        for capturer in (self.backend.capturer, stream.capturer):
            if capturer is not None:
                capturer.reset()
        self.backend.memory.release()
        self.buffers = self._build()
        if self._prepared:
            self.prepare()

    @torch.inference_mode()
    def prepare(self, threads: int | None = None) -> None:
        """Make the calling thread ready to run steps, with `threads` CPU threads for each operation (None:
        torch's choice), and capture all that can be captured."""
        if threads:
            torch.set_num_threads(threads)  # for operations of the calling thread
        self.backend.memory.activate()
        if self.backend.pins_attention:
            try_attentions(self.model, self.buckets(), self.sizes.encoder_room)
        buffers = self.buffers
        if self.backend.capturer is not None:
            with memory_errors(self.sizes.slots, self._encode_batch):
                capture_all(buffers.steps, buffers.encodes, self.picture_size)
            if self.decision is None:
                self._choose_encode_stream()
            buffers.caches.clear()
        elif self._reserved:
            beams = self.model.config.generation.num_beams  # of most requests
            for rows in range(beams, self.sizes.rows + 1, beams):
                warm_up_products(self.model.language, rows)
        self._prepared, self._stale = True, False

    def _choose_encode_stream(self) -> None:
        """Decide by a trial on which stream encodes run, before the first request."""
        self.decision = try_encode_stream(self, self.picture_size, self._encode_batch)
        if not self.decision.runs_beside:
            self.encode_stream = EncodeStream()
        self.buffers.clear()
        self.features.clear()
        self.backend.memory.release()

    def rest(self) -> None:
        if self._stale and self._prepared:
            self.prepare()

    def _build(self) -> Buffers:
        return make_buffers(
            self.model, self.backend, self.sizes, self.rules, self.buckets,
            lazy=self.backend.lazy_pages and not self._reserved,
        )  # fmt: skip

    def buckets(self) -> Buckets:
        """The shapes in which steps and encodes are captured."""
        sizes, config = self.sizes, self.model.config
        return Buckets.of(
            slots=sizes.slots,
            rows=sizes.rows,
            beams=config.generation.num_beams,
            room=sizes.decoder_room,
            picture_tokens=self.picture_tokens,
            encoder_room=sizes.encoder_room,
            pictures=self._encode_batch,
            grouped=self.backend.attention.grouped,
        )

    def encode(self, requests: Sequence[Request]) -> list[SequenceState]:
        """`encode_parts` in one call, for requests outside an engine."""
        sequences = [SequenceState(request) for request in requests]
        for wait in self.encode_parts(sequences):
            if wait is not None:
                wait()
        return sequences

    def encode_parts(self, sequences: Sequence[SequenceState]) -> Generator[Wait | None, None, int]:
        """Encode pictures and prompts together, and give each request a slot. Returns how many pictures went
        through the tower and were not cached. Raises `IndexError` where there is no free slot.

        Each request gets the result that it would get alone. Yields between the chunks of the work, so that
        decode steps can run in between. A chunk ends when the device has finished the one before it: the
        device has work while the host prepares the next, and a chunk's time is that of its work. Where
        encodes run beside steps, a chunk ends as soon as it is launched, and a function that waits for it is
        yielded.
        """
        chunks, stream = self.encode_chunks(sequences), self.encode_stream
        if stream.beside:
            return yielding(chunks, stream.wait)
        return within(chunks, self._one_behind)

    @contextmanager
    def _one_behind(self) -> Iterator[None]:
        """Within this context a chunk is launched. At the end wait until the chunk before it is done, even if
        that belongs to another encode."""
        yield
        previous, self._sent = self._sent, self.backend.memory.mark()
        previous()

    @torch.inference_mode()
    def encode_chunks(self, sequences: Sequence[SequenceState]) -> Chunks[int]:
        """`encode_parts` without its waits for the device: it yields wherever decode steps may run."""
        requests, misses = [sequence.request for sequence in sequences], self.features.misses
        stream = self.encode_stream
        try:
            self.place_adapters(sequences)
            pictures = yield from within(self._encode_images(sequences), stream.sending)
            with stream.sending():
                self._allocate(sequences, pictures.shape[1])  # pictures: [requests, tokens, d_model]
        except BaseException:  # also when the chunks are closed
            for sequence in sequences:
                self.buffers.adapters.leave(sequence)
            raise
        try:
            slots = [sequence.slot.index for sequence in sequences]
            prompts = [request.prompt_ids for request in requests]
            adapters = [sequence.adapter for sequence in sequences]
            writing = self.buffers.encodes.write_cross_kv(pictures, prompts, slots, adapters)
            yield from within(writing, stream.sending)
            while not stream.done():
                yield
            # Last: a decode step between two chunks would advance a search that has started.
            starts = starts_of([(sequence.slot, sequence.request.options) for sequence in sequences])
            self.state.start(self.backend.memory.upload(starts))
        except BaseException:
            for sequence in sequences:
                self.drop(sequence)
            raise
        return self.features.misses - misses

    def place_adapters(self, sequences: Sequence[SequenceState]) -> None:
        """Load the requests' adapters onto the device. Raises `IndexError` where there is no free slot."""
        buffers, changed = self.buffers, list[str]()
        try:
            buffers.adapters.enter(sequences, changed)
        finally:
            if changed and self.backend.capturer is not None:
                log.warning("%s: other layers or ranks than before, steps run uncaptured for now", changed)
                self._stale = True
                buffers.steps, buffers.encodes = uncaptured_work(
                    self.model, self.backend, buffers.caches, buffers.state, self.buckets
                )

    def _encode_images(self, sequences: Sequence[SequenceState]) -> Chunks[Tensor]:
        """The requests' pictures as tokens [requests, tokens, d_model], from the feature cache where it has
        them; each other picture is encoded once, or once for each adapter that changes the tower."""
        keys = [sequence.request.picture_key for sequence in sequences]
        known = self.features.find(keys)
        new = {key: each for key, each in zip(keys, sequences, strict=True) if key not in known}
        if new:
            pixels = [torch.from_numpy(each.request.pixels) for each in new.values()]
            adapters = [each.adapter for each in new.values()]
            tokens = yield from self.buffers.encodes.encode_images(pixels, adapters)
            # Copies: a cached picture must not keep its whole batch alive.
            made = dict(zip(new, (picture.clone() for picture in tokens), strict=True))
            self.features.keep(made)
            known |= made
        return torch.stack([known[key] for key in keys])

    def _allocate(self, sequences: Sequence[SequenceState], picture_tokens: int) -> None:
        """Give a slot to each request, to all of them or to none."""
        to_wipe = self.buffers.to_wipe
        while to_wipe:  # not in `drop`, which must not fail when the device does
            self.caches.wipe(to_wipe[-1].index, to_wipe[-1].rows)
            to_wipe.pop()
        if self.slots.fits(sequence.request.options.num_beams for sequence in sequences) < len(sequences):
            raise IndexError("no free slot")
        for sequence in sequences:
            slot = self.slots.take(sequence.request.options.num_beams)
            sequence.place(slot, picture_tokens, picture_tokens + len(sequence.request.prompt_ids))

    @torch.inference_mode()
    def step(self, sequences: Sequence[SequenceState]) -> list[tuple[SequenceState, Outcome]]:
        """Run one decode step for all sequences whose search is not known to have ended. Returns those whose
        outcome has become known; their slots are free again."""
        running = [sequence for sequence in sequences if not sequence.ended]
        if running:
            self.buffers.steps.run(running)
        for sequence in running:
            sequence.steps += 1
        latest = StepReadback(self.state, self.backend.memory, running)
        if not self.backend.delayed_readback:
            return self._collect(latest, latest)
        due, self.buffers.latest = self.buffers.latest, latest
        return [] if due is None else self._collect(due, latest)

    def _collect(self, due: StepReadback, latest: StepReadback) -> list[tuple[SequenceState, Outcome]]:
        """The outcomes in the readback `due`, except of dropped sequences. The hypotheses of searches that it
        reports as done are fetched with `latest`: fetching them with `due` would wait for the latest step."""
        statuses, tokens = due.decided()
        outcomes: list[tuple[SequenceState, Outcome]] = []
        done = []
        for sequence in due.sequences:
            status, token = statuses[sequence.slot.index], tokens[sequence.slot.index]
            if sequence.dropped or sequence.ended:
                continue
            # With a delayed readback the sequence has taken another step since.
            sequence.finite = status != FAULTY and not self.backend.delayed_readback
            sequence.ended = status != RUNNING
            if sequence.request.on_token is not None and status != FAULTY:
                sequence.request.on_token(token)
            if status == DONE:
                done.append(sequence)
            elif status == FAULTY:
                outcomes.append((sequence, not_finite()))
        latest.fetch_hypotheses(done)
        outcomes += ((sequence, best) for sequence, best in due.hypotheses() if not sequence.dropped)
        for sequence, _ in outcomes:
            self.drop(sequence)
        return outcomes

    def drop(self, sequence: SequenceState) -> None:
        sequence.dropped = True
        self.slots.give_back(sequence.slot)
        self.buffers.adapters.leave(sequence)
        if self.backend.attention.masked and not sequence.finite:
            self.buffers.to_wipe.append(sequence.slot)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        if len(hypothesis.token_ids) < request.options.max_length:
            return False
        return self.rules.forced_eos_id is not None or hypothesis.token_ids[-1] != self.rules.eos_id
