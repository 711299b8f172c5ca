"""Plain beam search, one request at a time: the definition of "exact".

It gives what Microsoft's original code gets from transformers 4.46's `generate` (`_beam_search`,
`BeamSearchScorer`, `_sample`): the same operations in the same order, on Python lists in place of tensors.
When sampling, the processed scores are the original's, but the noise is that of `sampling.gumbel`. Every
faster path is tested against this module. Knows scores and token ids; the caller's `advance` computes the
scores.

transformers 5 differs in one setting: with `early_stopping` False and a length penalty above 0 it may end a
search earlier, since a candidate that has just ended no longer counts among those that could still win.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from florence.engine.device.beams.sampling import gumbel
from florence.engine.device.beams.window_sums import window_sums
from florence.engine.faults import not_finite
from florence.engine.request import GenerationOptions, Request
from florence.model.config import ModelConfig
from florence.model.florence2 import Florence2Model
from florence.model.keys_values import Cache
from florence.model.language import LanguageModel
from florence.types.bounds import Sums

Advance = Callable[[Sequence[int], Sequence[int]], Tensor]
"""`advance(parents, tokens)` -> float32 logits [beams, vocab]: beam i now continues beam `parents[i]` with
`tokens[i]`."""

UNREACHABLE = -1e9
"""Total score of all beams but the first before the first step, so that all beams start from the first
one."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Special token ids; a forced id of None forces nothing.

    `ordered`: a range of ids in which neighbours mean nearly the same (locations), for `window_sums`; None
    for no sums.
    """

    start_id: int
    eos_id: int
    forced_bos_id: int | None
    forced_eos_id: int | None
    ordered: range | None = None

    @classmethod
    def of(cls, config: ModelConfig, ordered: range | None = None) -> TokenRules:
        """A checkpoint's own."""
        text, settings = config.text, config.generation
        return cls(text.start_id, text.eos_id, settings.forced_bos_id, settings.forced_eos_id, ordered)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence with its start token, the log-probability of each generated token, and the score: their sum
    divided by length ** length_penalty. `token_windows`: the window sums of each generated token; empty where
    no tokens are ordered."""

    token_ids: list[int]
    token_logprobs: list[float]
    score: float
    token_windows: list[Sums] = field(default_factory=list)


def generate(advance: Advance, options: GenerationOptions, rules: TokenRules) -> Hypothesis:
    """The best sequence for one request: greedy search with one beam, beam search with more.

    Raises `EngineError` for logits that are NaN, and whatever `advance` raises.
    """
    search = (GreedySearch if options.num_beams == 1 else BeamSearch)(options, rules)
    while not search.done:
        search.take(advance(search.parents, search.tokens))
    return search.best()


def generate_alone(model: Florence2Model, request: Request, rules: TokenRules) -> Hypothesis:
    """The best sequence for `request`, computed alone: every faster path must give the same."""
    device = model.device
    pictures = model.encode_images(torch.from_numpy(request.pixels)[None].to(device))
    encoded = model.encode(pictures, torch.tensor([request.prompt_ids], device=device))
    return generate(plain_advance(model.language, encoded, request.options.num_beams), request.options, rules)


def plain_advance(language: LanguageModel, encoded: Tensor, beams: int) -> Advance:
    """The `Advance` of one request with encoder states [1, length, d_model]; it copies the cache whenever
    beams are reordered."""
    cross_kv = tuple(layer.expand(beams) for layer in language.decoder.cross_kv(encoded))
    past: Cache | None = None

    def advance(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        nonlocal past
        if past is not None:
            rows = torch.tensor(parents, device=encoded.device)
            past = tuple(layer.select(rows) for layer in past)
        token_ids = torch.tensor(tokens, device=encoded.device)[:, None]  # [beams, 1]
        states, past = language.decode(token_ids, past, cross_kv)
        return language.logits(states[:, -1])  # [beams, vocab]

    return advance


class Search(ABC):
    """The state of a search between two decoder steps.

    `tokens`: what each beam reads next. `parents`: the beam of the previous step that each one continues.
    `done`: whether `best` is final. Until then, pass each step's logits to `take`.
    """

    def __init__(self, options: GenerationOptions, rules: TokenRules) -> None:
        self.options = options
        self.rules = rules
        self.sequences = [[rules.start_id]] * options.num_beams
        self.logprobs = [list[float]()] * options.num_beams
        self.windows = [list[Sums]()] * options.num_beams
        self.parents = [0] * options.num_beams
        self.done = False

    @property
    def tokens(self) -> list[int]:
        return [sequence[-1] for sequence in self.sequences]

    def take(self, logits: Tensor) -> None:
        """Choose the next tokens from float32 `logits` [beams, vocab]. Raises `EngineError` for NaN."""
        if bool(logits.isnan().any()):
            raise not_finite()
        self._choose(logits)

    def _windows(self, logprobs: Tensor, token: int) -> list[Sums]:
        """A list of the chosen token's window sums; empty where no tokens are ordered."""
        ordered = self.rules.ordered
        return [] if ordered is None else [window_sums(logprobs, token, ordered)]

    @abstractmethod
    def _choose(self, logits: Tensor) -> None: ...

    @abstractmethod
    def best(self) -> Hypothesis:
        """The best sequence so far; final once `done`."""


class GreedySearch(Search):
    """One beam: at each step the most likely token, or a sampled one."""

    def _choose(self, logits: Tensor) -> None:
        # Greedy search applies the rules to raw logits, beam search to log-probabilities.
        scores = apply_rules(logits, self.sequences, self.options, self.rules)[0]
        plain = scores.log_softmax(dim=-1)
        noise: Tensor | float = 0.0
        if self.options.do_sample:
            scores = warp_scores(scores, self.options)
            noise = _noise(self.options.seed or 0, len(self.logprobs[0]), scores)
        token = int((scores + noise).argmax())
        self.logprobs = [[*self.logprobs[0], float(scores.log_softmax(dim=-1)[token])]]
        self.windows = [[*self.windows[0], *self._windows(plain, token)]]
        self.sequences = [[*self.sequences[0], token]]
        self.done = token == self.rules.eos_id or len(self.sequences[0]) == self.options.max_length

    def best(self) -> Hypothesis:
        logprobs = self.logprobs[0]
        score = sum(logprobs) / len(logprobs) ** self.options.length_penalty
        return Hypothesis(self.sequences[0], logprobs, score, self.windows[0])


class BeamSearch(Search):
    """Several beams; finished sequences compete by their penalised mean log-probability."""

    def __init__(self, options: GenerationOptions, rules: TokenRules) -> None:
        super().__init__(options, rules)
        self.totals = [0.0] + [UNREACHABLE] * (options.num_beams - 1)
        self.finished = FinishedHypotheses(options)

    def _choose(self, logits: Tensor) -> None:
        beams, eos_id = self.options.num_beams, self.rules.eos_id
        scores = apply_rules(logits.log_softmax(dim=-1), self.sequences, self.options, self.rules)
        candidates = scores + torch.tensor(self.totals, device=scores.device)[:, None]  # [beams, vocab]
        # Each beam has at most one EOS among its candidates, so `beams` of them continue.
        best, flat = candidates.flatten().topk(2 * beams)
        values = scores.flatten()[flat].tolist()
        parents: list[int] = []
        sequences, logprobs, windows, totals = [], [], [], []
        vocab = scores.shape[-1]
        for rank, (total, index, value) in enumerate(zip(best.tolist(), flat.tolist(), values, strict=True)):
            parent, token = divmod(index, vocab)
            sequence, history = [*self.sequences[parent], token], [*self.logprobs[parent], value]
            sums = [*self.windows[parent], *self._windows(scores[parent], token)]
            if token == eos_id:
                if rank < beams:  # a candidate that ranks after the open beams is dropped
                    self.finished.add(sequence, history, sums, total)
            elif len(parents) < beams:
                parents.append(parent)
                sequences.append(sequence)
                logprobs.append(history)
                windows.append(sums)
                totals.append(total)
        self.parents, self.sequences, self.totals = parents, sequences, totals
        self.logprobs, self.windows = logprobs, windows
        length = len(sequences[0])
        if self.finished.is_done(best=float(best[0]), generated=length - 1):
            self.done = True
        elif length == self.options.max_length:
            for sequence, history, sums, total in zip(sequences, logprobs, windows, totals, strict=True):
                self.finished.add(sequence, history, sums, total)
            self.done = True

    def best(self) -> Hypothesis:
        return self.finished.best()


@dataclass(slots=True)
class FinishedHypotheses:
    """The `num_beams` best finished hypotheses of one request."""

    options: GenerationOptions
    kept: list[Hypothesis] = field(default_factory=list)

    def add(
        self, token_ids: list[int], token_logprobs: list[float], token_windows: list[Sums], total: float
    ) -> None:
        """Keep a finished sequence if it is among the best; of equal scores the older one is replaced."""
        score = total / len(token_logprobs) ** self.options.length_penalty
        full = len(self.kept) == self.options.num_beams
        if full and score <= self.worst:
            return
        self.kept.append(Hypothesis(token_ids, token_logprobs, score, token_windows))
        if full:
            del self.kept[min(range(len(self.kept)), key=lambda index: self.kept[index].score)]

    @property
    def worst(self) -> float:
        """The lowest score."""
        return min(hypothesis.score for hypothesis in self.kept)

    def is_done(self, best: float, generated: int) -> bool:
        """Whether no open beam can win. `best`: the highest total among this step's candidates; `generated`:
        tokens of each sequence."""
        if len(self.kept) < self.options.num_beams:
            return False
        if self.options.early_stopping is True:
            return True
        penalty = self.options.length_penalty
        at_full_length = self.options.early_stopping == "never" and penalty > 0.0
        length = self.options.max_new_tokens if at_full_length else generated
        return bool(self.worst >= best / length**penalty)

    def best(self) -> Hypothesis:
        """The hypothesis with the highest score; of equal scores the newest."""
        return max(reversed(self.kept), key=lambda hypothesis: hypothesis.score)


def apply_rules(
    scores: Tensor, sequences: Sequence[Sequence[int]], options: GenerationOptions, rules: TokenRules
) -> Tensor:
    """Scores [beams, vocab] with the repetition penalty, and -inf for tokens that are forbidden.

    In the original's order: the penalty on tokens that have come before, repeated n-grams (the start token is
    part of the sequence in both), EOS before `min_new_tokens`, the forced first token, the forced last token.
    """
    scores = scores.clone()
    for row, sequence in enumerate(sequences):
        seen, penalty = scores[row, sequence], options.repetition_penalty
        scores[row, sequence] = torch.where(seen < 0, seen * penalty, seen / penalty)
        banned = repeated_tokens(sequence, options.no_repeat_ngram_size)
        scores[row, banned] = -torch.inf
    length = len(sequences[0])
    if length - 1 < options.min_new_tokens:
        scores[:, rules.eos_id] = -torch.inf
    if length == 1 and rules.forced_bos_id is not None:
        scores = _only(scores, rules.forced_bos_id)
    if length == options.max_length - 1 and rules.forced_eos_id is not None:
        scores = _only(scores, rules.forced_eos_id)
    return scores


def repeated_tokens(sequence: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` that `sequence` already has; none for a size of 0."""
    if size == 0 or len(sequence) < size:
        return []
    ends = range(size - 1, len(sequence))  # of n-grams
    last = list(sequence[len(sequence) - size + 1 :])
    return [sequence[end] for end in ends if list(sequence[end - size + 1 : end]) == last]


def warp_scores(scores: Tensor, options: GenerationOptions) -> Tensor:
    """Scores [vocab] to sample from: divided by the temperature, then -inf for all tokens but the `top_k`
    likeliest, then for the least likely ones that have at most 1 - `top_p` of the probability together."""
    scores = scores / options.temperature
    if options.top_k:
        lowest = scores.topk(min(options.top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    if options.top_p < 1:
        ordered, tokens = scores.sort(stable=True)
        dropped = ordered.softmax(-1).cumsum(-1) <= 1 - options.top_p
        dropped[-1] = False
        scores[tokens[dropped]] = -torch.inf
    return scores


def _noise(seed: int, position: int, scores: Tensor) -> Tensor:
    """The noise for sampling one token, [vocab]."""
    where = torch.tensor([[seed], [position]], device=scores.device)
    return gumbel(where[0], where[1], len(scores))[0]


def _only(scores: Tensor, token: int) -> Tensor:
    forced = torch.full_like(scores, -torch.inf)
    forced[:, token] = 0.0
    return forced
