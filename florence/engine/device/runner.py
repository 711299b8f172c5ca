"""Runs requests on the device: pictures and prompts are encoded, and a step is taken for all that decode.

Owns the model, the caches, the searches and the places in them. Knows nothing about threads, queues, futures
or time limits.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from florence.engine.config import DEFAULT_PICTURE_CACHE_BYTES
from florence.engine.device.encodes import BucketEncodes, Encodes, PlainEncodes
from florence.engine.device.features import FeatureCache
from florence.engine.device.graphs import Buckets, BucketSteps, Recorder
from florence.engine.device.readback import Reading
from florence.engine.device.reference import Hypothesis, TokenRules
from florence.engine.device.search import DONE, FAULTY, RUNNING, SearchState
from florence.engine.device.steps import DenseSteps, Stage, Steps, TightSteps
from florence.engine.request import Request
from florence.engine.sequence import SequenceState
from florence.engine.slots import Slot, SlotAllocator
from florence.errors import EngineError
from florence.model.caches import Caches, CacheSizes
from florence.model.chunks import Chunks, run_to_end, waiting
from florence.model.decode import Kernel, try_products
from florence.model.florence2 import Florence2Model
from florence.types.bounds import MAX_BEAMS

Outcome = Hypothesis | EngineError


class Runner:
    """A model on its device, and what it takes to decode many requests with it.

    `slots`: requests that are decoded together; as many rows as they need with the checkpoint's own number of
    beams. `picture_tokens`: that a picture becomes. `encode_batch`: the most requests that are encoded
    together, None for as many as slots. `picture_size`: height and width of pictures for which encodes are
    recorded at the start, None to record them as they come. `encoder_room`, `decoder_room`: positions that
    are kept for a request and for a beam, None for as many as the checkpoint has. `feature_bytes`: memory for
    what the tower saw in the latest pictures. `kernel`: attention for this CPU, or None for torch's.
    `recorder`: records steps and encodes of few shapes, None to run just what is there. `late`: look at what
    a step decided only when the next one has been sent, so that the device never waits for the host; whoever
    is done runs along for a step, in vain. `reserved`: take at the start all memory that a full engine needs,
    which on a CPU is else taken as requests first come to it.
    """

    def __init__(
        self,
        model: Florence2Model,
        slots: int = 16,
        *,
        picture_tokens: int = 1,
        encode_batch: int | None = None,
        picture_size: tuple[int, int] | None = None,
        encoder_room: int | None = None,
        decoder_room: int | None = None,
        feature_bytes: int = DEFAULT_PICTURE_CACHE_BYTES,
        kernel: Kernel | None = None,
        recorder: Recorder | None = None,
        late: bool = False,
        reserved: bool = False,
        rules: TokenRules | None = None,
    ) -> None:
        text, generation = model.config.text, model.config.generation
        weight = model.language.shared.weight
        rows = max(MAX_BEAMS, slots * generation.num_beams)
        self.model = model
        self.device = weight.device
        self.features: FeatureCache[Tensor] = FeatureCache(feature_bytes)
        self.rules = rules or TokenRules(
            start_id=text.start_id,
            eos_id=text.eos_id,
            forced_bos_id=generation.forced_bos_id,
            forced_eos_id=generation.forced_eos_id,
        )
        most = text.max_positions
        self.sizes = CacheSizes(slots, rows, encoder_room or most, decoder_room or most)
        self._picture_tokens, self._picture_size = picture_tokens, picture_size
        self._encode_batch = min(encode_batch or slots, slots)
        self._kernel, self._recorder, self._late = kernel, recorder, late
        self._reserved = reserved
        # The kernel reads what a request itself has written; other steps read whole places, and mask them.
        self._shared = recorder is not None or kernel is None
        self._dtype = weight.dtype
        self._last: Reading | None = None
        self._prepared = False
        self._build()

    def reset(self) -> None:
        """Forget everybody, with new buffers: after a fault of the device the old ones can't be trusted. What
        `prepare` did is done again.

        Raises whatever the device raises, if it is gone for good.
        """
        # The old ones go first: a device has no room for both.
        self._last = None
        for name in ("caches", "state", "_steps", "_encodes"):
            vars(self).pop(name, None)
        self.features.clear()
        gc.collect()  # what was recorded refers to itself
        if self._recorder is not None:
            self._recorder.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._build()
        if self._prepared:
            self.prepare()

    def _build(self) -> None:
        """Buffers for everybody there is room for, and nobody in them."""
        sizes, text = self.sizes, self.model.config.text
        self.slots = SlotAllocator(sizes.slots, sizes.rows)
        self._unsound: list[Slot] = []  # free, but perhaps with values that are no numbers
        self.caches = Caches(
            sizes, text.decoder, text.d_model, self.device, self._dtype, reserved=self._reserved
        )
        self.state = SearchState(sizes.slots, sizes.decoder_room, self.rules, self.device)
        stage = Stage(self.model.language, self.caches, self.state)
        self._last = None
        self._encodes: Encodes = PlainEncodes(self.model, self.caches)
        if self._recorder is not None:
            buckets = self._buckets()
            self._steps: Steps = BucketSteps(stage, buckets, self._recorder)
            self._encodes = BucketEncodes(self.model, self.caches, buckets, self._recorder)
        elif self._kernel is not None:
            self._steps = TightSteps(stage, self._kernel)
        else:
            self._steps = DenseSteps(stage)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Make the thread that calls this ready to run steps, and record what can be recorded before the
        first request comes."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if isinstance(self._encodes, BucketEncodes) and self._picture_size is not None:
            self._encodes.prepare(*self._picture_size)
        if isinstance(self._steps, BucketSteps):
            self._steps.prepare(self._picture_tokens)
            self.caches.clear()  # steps of nobody read no past, and write what may be no numbers
        elif self._reserved:
            beams = self.model.config.generation.num_beams  # most requests have so many
            for rows in range(beams, self.sizes.rows + 1, beams):
                try_products(self.model.language, rows)
        self._prepared = True

    def _buckets(self) -> Buckets:
        sizes, config = self.sizes, self.model.config
        return Buckets.of(
            slots=sizes.slots,
            rows=sizes.rows,
            beams=config.generation.num_beams,
            most_beams=MAX_BEAMS,
            length=sizes.decoder_room + 1,
            picture_tokens=self._picture_tokens,
            room=sizes.encoder_room,
            pictures=self._encode_batch,
        )

    def encode(self, requests: Sequence[Request]) -> list[SequenceState]:
        """All parts of `encode_parts`."""
        return run_to_end(self.encode_parts(requests))

    def encode_parts(self, requests: Sequence[Request]) -> Chunks[list[SequenceState]]:
        """Encode pictures and prompts together and give each request its place, for which there must be room.

        What each gets is what it would get alone. Yields between the parts of the work, so that others need
        not wait for all of it. A part ends when the device has done it: whoever gives encodes a budget of
        time measures that of the work, not that of sending it.
        """
        parts = self._encode(requests)
        if self.device.type == "cuda":
            return waiting(parts, lambda: torch.cuda.current_stream(self.device).synchronize())
        return parts

    @torch.inference_mode()
    def _encode(self, requests: Sequence[Request]) -> Chunks[list[SequenceState]]:
        pictures = yield from self._look(requests)  # [requests, tokens, d_model]
        sequences = self._place(requests, pictures.shape[1])
        try:
            slots = [sequence.slot.index for sequence in sequences]
            yield from self._encodes.cross(pictures, [request.prompt_ids for request in requests], slots)
            # Not before: a step between two parts would move a search that has begun.
            for sequence in sequences:
                self.state.start(sequence.slot.index, sequence.slot.rows, sequence.request.options)
        except BaseException:  # or these parts are closed
            self._drop_all(sequences)
            raise
        return sequences

    def _look(self, requests: Sequence[Request]) -> Chunks[Tensor]:
        """The requests' pictures as tokens [requests, tokens, d_model]; those seen lately from memory, and
        each only once."""
        known = self.features.find([request.digest for request in requests])
        new = {request.digest: request.pixels for request in requests if request.digest not in known}
        if new:
            pixels = torch.from_numpy(np.stack(list(new.values())))
            tokens = yield from self._encodes.look(pixels)
            # Copies, so that one that is remembered does not keep its whole batch.
            made = dict(zip(new, (picture.clone() for picture in tokens), strict=True))
            self.features.keep(made)
            known |= made
        return torch.stack([known[request.digest] for request in requests])

    def _place(self, requests: Sequence[Request], picture_tokens: int) -> list[SequenceState]:
        """Give each request its place, all of them or none."""
        while self._unsound:  # here and not when they are freed, which must not fail if the device does
            self.caches.wipe(self._unsound[-1].index, self._unsound[-1].rows)
            self._unsound.pop()
        sequences: list[SequenceState] = []
        try:
            for request in requests:
                slot = self.slots.take(request.options.num_beams)
                length = picture_tokens + len(request.prompt_ids)
                sequences.append(SequenceState(request, slot, picture_tokens, length))
        except IndexError:
            self._drop_all(sequences)
            raise
        return sequences

    def _drop_all(self, sequences: Sequence[SequenceState]) -> None:
        for sequence in sequences:
            self.drop(sequence)

    @torch.inference_mode()
    def step(self, sequences: Sequence[SequenceState]) -> list[tuple[SequenceState, Outcome]]:
        """One decoder step for all of them; those that are known to have ended, each with what came of it.
        Their places are free again."""
        running = [sequence for sequence in sequences if not sequence.ended]
        if running:
            self._steps.run(running)
        for sequence in running:
            sequence.steps += 1
        latest = Reading(self.state, running)
        due, self._last = (self._last, latest) if self._late else (latest, None)
        return [] if due is None else self._settle(due, latest)

    def _settle(self, due: Reading, latest: Reading) -> list[tuple[SequenceState, Outcome]]:
        """What a reading says of those who have not gone meanwhile. Where it says that the search of some is
        done, their hypotheses come with the latest one: another look, now, would wait for its step."""
        statuses, tokens = due.decided()
        outcomes: list[tuple[SequenceState, Outcome]] = []
        done = []
        for sequence in due.sequences:
            status, token = statuses[sequence.slot.index], tokens[sequence.slot.index]
            if sequence.gone or sequence.ended:
                continue
            sequence.sound = status != FAULTY and not self._late  # late: it has taken another step since
            sequence.ended = status != RUNNING
            if sequence.request.on_token is not None and status != FAULTY:
                sequence.request.on_token(token)
            if status == DONE:
                done.append(sequence)
            elif status == FAULTY:
                fault = EngineError("the model gave values that are not numbers for this request")
                outcomes.append((sequence, fault))
        latest.bring(done)
        outcomes += ((sequence, best) for sequence, best in due.hypotheses() if not sequence.gone)
        self._drop_all([sequence for sequence, _ in outcomes])
        return outcomes

    def drop(self, sequence: SequenceState) -> None:
        """Free the places of a request that nobody waits for any more."""
        sequence.gone = True
        self.slots.give_back(sequence.slot)
        if self._shared and not sequence.sound:
            self._unsound.append(sequence.slot)

    def was_cut(self, hypothesis: Hypothesis, request: Request) -> bool:
        """Whether the length limit, not the model, ended the sequence."""
        if len(hypothesis.token_ids) < request.options.max_length:
            return False
        return self.rules.forced_eos_id is not None or hypothesis.token_ids[-1] != self.rules.eos_id
