"""Runs trials on transformers' Florence-2: its `generate`, its log-probabilities of a given answer, and the
answer by the search of transformers 4.46 on its logits.

Knows nothing about this package's model; of the engine it uses only the reference search, on transformers'
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from florence.engine.device.beams.reference import TokenRules, generate
from florence.engine.request import GenerationOptions
from florence.types.tasks import Task
from florence.verification.trials import Sample, Trial


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """One side's answer: the sequence with its start token and without padding, and the log-probability of
    each token after the first, 0 for forced ones."""

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]


class Transformers:
    """transformers' model and processor, used as a program would, one trial at a time."""

    def __init__(
        self, model: Any, processor: Any, rules: TokenRules, pad_id: int, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.processor = processor
        self.rules = rules
        self._pad_id = pad_id
        self._device = device
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._encoded: tuple[tuple[Sample, Task, torch.dtype], Tensor] | None = None
        self._kept: tuple[tuple[Sample, Task] | None, dict[tuple[int, ...], Tensor]] = (None, {})

    def prompt_ids(self, trial: Trial) -> tuple[int, ...]:
        """The token ids from transformers' processor for the task's token and text, without the picture's
        tokens."""
        asked = trial.task.token + (trial.text or "")
        if asked not in self._prompts:
            grey = Image.new("RGB", (32, 32))  # it requires a picture
            ids = self.processor(images=grey, text=asked, return_tensors="pt")["input_ids"][0].tolist()
            self._prompts[asked] = tuple(each for each in ids if each != self.processor.image_token_id)
        return self._prompts[asked]

    def pixels(self, picture: Sample) -> Tensor:
        """The pixels from transformers' processor, float32 [1, 3, height, width]."""
        image = ImageOps.exif_transpose(Image.open(BytesIO(picture.data))).convert("RGB")
        values: Tensor = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return values

    @torch.inference_mode()
    def features(self, picture: Sample) -> Tensor:
        """The tower's features [1, dim, height, width], in float32 on the CPU."""
        values = self.pixels(picture).to(self._device, self.model.dtype)
        found: Tensor = self.model.model.vision_tower(values).last_hidden_state
        return found.float().cpu()

    def answer(self, trial: Trial) -> GeneratedTokens:
        """The answer by transformers' own `generate`."""
        found = self.generate([trial], return_dict_in_generate=True, output_scores=True)
        greedy = trial.options.num_beams == 1
        # Beam search scores log-probabilities, greedy search logits.
        logprobs = self.model.compute_transition_scores(
            found.sequences, found.scores, None if greedy else found.beam_indices, normalize_logits=greedy
        )
        ids, eos = found.sequences[0].tolist(), self.rules.eos_id
        length = ids.index(eos, 1) + 1 if eos in ids[1:] else len(ids)
        return GeneratedTokens(tuple(ids[:length]), tuple(logprobs[0].tolist()[: length - 1]))

    @torch.inference_mode()
    def generate(self, trials: Sequence[Trial], **outputs: bool) -> Any:
        """The output of `generate` for trials with one prompt and the same settings, as one batch."""
        options = trials[0].options
        inputs = [self._inputs(trial) for trial in trials]
        search = {"early_stopping": options.early_stopping, "length_penalty": options.length_penalty}
        return self.model.generate(
            **{name: torch.cat([each[name] for each in inputs]) for name in inputs[0]},
            do_sample=False,
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            **(search if options.num_beams > 1 else {}),
            forced_bos_token_id=self.rules.forced_bos_id,
            forced_eos_token_id=self.rules.forced_eos_id,
            decoder_start_token_id=self.rules.start_id,
            eos_token_id=self.rules.eos_id,
            pad_token_id=self._pad_id,
            **outputs,
        )

    @torch.inference_mode()
    def logprobs(self, trial: Trial, token_ids: Sequence[int]) -> list[float]:
        """The log-probabilities of a given answer under transformers' model and its own rules; -inf for a
        token that its rules forbid."""
        ids = torch.tensor([token_ids], device=self._device)
        logits = self._logits(trial, ids[:, :-1])[0]
        greedy = trial.options.num_beams == 1
        processors, found = self._processors(trial.options), []
        for place, scores in enumerate(logits[:, None], start=1):
            scores = scores if greedy else scores.log_softmax(-1)
            for rule in processors:
                scores = rule(ids[:, :place], scores)
            scores = scores.log_softmax(-1) if greedy else scores
            found.append(float(scores[0, token_ids[place]]))
        return found

    @torch.inference_mode()
    def searched(self, trial: Trial, noise: float = 0.0, seed: int = 0) -> tuple[int, ...]:
        """The answer by the search of transformers 4.46, which is the original's, on transformers' logits.

        `noise`: random change of each logit, roughly this large; where rounding decides, other seeds give
        other answers.
        """
        generator = torch.Generator().manual_seed(seed)
        moved: dict[tuple[int, ...], Tensor] = {}
        beams: list[tuple[int, ...]] = []

        def advance(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
            nonlocal beams
            pairs = zip(parents, tokens, strict=True)
            beams = [(*(beams[parent] if beams else ()), token) for parent, token in pairs]
            for beam in beams:
                if beam not in moved:
                    logits = self._next_logits(trial, beam)
                    moved[beam] = logits + noise * torch.randn(logits.shape, generator=generator)
            return torch.stack([moved[beam] for beam in beams])

        return tuple(generate(advance, trial.options, self.rules).token_ids)

    def _inputs(self, trial: Trial) -> dict[str, Tensor]:
        """The picture's tokens followed by the prompt's ids, and the picture."""
        picture = [self.model.config.image_token_id] * self.processor.num_image_tokens
        ids = torch.tensor([[*picture, *self.prompt_ids(trial)]], device=self._device)
        pixels = self.pixels(trial.picture).to(self._device, self.model.dtype)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def _logits(self, trial: Trial, ids: Tensor) -> Tensor:
        """float32 logits [rows, length, vocab] of decoder ids [rows, length]. Caches the encoder's states of
        the last picture and prompt."""
        from transformers.modeling_outputs import BaseModelOutput

        about = (trial.picture, trial.task, self.model.dtype)
        if self._encoded is None or self._encoded[0] != about:
            output = self.model(**self._inputs(trial), decoder_input_ids=ids[:1, :1])
            self._encoded = (about, output.encoder_last_hidden_state)
        states = self._encoded[1].expand(len(ids), -1, -1)
        mask = states.new_ones(states.shape[:2], dtype=torch.long)
        output = self.model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=mask,
            decoder_input_ids=ids,
            use_cache=False,
        )
        logits: Tensor = output.logits.float()
        return logits

    def _next_logits(self, trial: Trial, beam: tuple[int, ...]) -> Tensor:
        """Logits [vocab] after a sequence, on the CPU. Caches those of one picture and prompt."""
        about = (trial.picture, trial.task)
        if self._kept[0] != about:
            self._kept = (about, {})
        known = self._kept[1]
        if beam not in known:
            known[beam] = self._logits(trial, torch.tensor([beam], device=self._device))[0, -1].cpu()
        return known[beam]

    def _processors(self, options: GenerationOptions) -> list[Any]:
        """The logits processors that `generate` applies at each step, in order."""
        from transformers.generation import logits_process as rules

        size, min_new_tokens, device = options.no_repeat_ngram_size, options.min_new_tokens, self._device
        bos, eos = self.rules.forced_bos_id, self.rules.forced_eos_id
        made: list[Any] = [rules.NoRepeatNGramLogitsProcessor(size)] if size else []
        if min_new_tokens:
            made.append(
                rules.MinNewTokensLengthLogitsProcessor(1, min_new_tokens, self.rules.eos_id, device=device)
            )
        if bos is not None:
            made.append(rules.ForcedBOSTokenLogitsProcessor(bos))
        if eos is not None:
            made.append(rules.ForcedEOSTokenLogitsProcessor(options.max_length, eos, device=device))
        return made
