"""The training losses: next token with blurred locations, and the loss of the plain head.

Knows nothing about scenes or optimizers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Florence2ForConditionalGeneration

from florence.demo.training.batches import IGNORED, PAD, AnswerGroup, Batch
from florence.demo.training.network import PlainHead
from florence.types.regions import BINS

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def picture_features(model: Florence2ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> picture tokens [B, 1 + cells, width]; the first is the mean."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    scaled = (pixels.float() / 255 - mean) / std
    # Permuted NHWC is channels_last already.
    features: Tensor = model.get_image_features(pixel_values=scaled.permute(0, 3, 1, 2)).pooler_output
    return features


def answer_loss(
    model: Florence2ForConditionalGeneration,
    features: Tensor,
    group: AnswerGroup,
    first_location: int,
    blur: Tensor,
) -> tuple[Tensor, Tensor, int]:
    """Summed losses of a group's words and of its locations, and the number of tokens of both.

    `blur` [1000, 1000]: target distributions by location.
    """
    language = model.model.language_model
    pictures = features[group.owner]
    embedded = torch.cat([pictures, language.shared(group.prompt).to(pictures.dtype)], dim=1)
    seen = torch.cat([group.prompt.new_ones(pictures.shape[:2]), (group.prompt != PAD).long()], dim=1)
    encoded = language.encoder(inputs_embeds=embedded, attention_mask=seen).last_hidden_state
    hidden = language.decoder(
        input_ids=group.inputs, encoder_hidden_states=encoded, encoder_attention_mask=seen, use_cache=False
    ).last_hidden_state
    real = group.labels != IGNORED
    labels = group.labels[real]
    logits = model.lm_head(hidden[real]).float()
    is_location = (labels >= first_location) & (labels < first_location + BINS)
    words = functional.cross_entropy(logits[~is_location], labels[~is_location], reduction="sum")
    targets = blur[labels[is_location] - first_location]
    log_probs = functional.log_softmax(logits[is_location], dim=1)[:, first_location : first_location + BINS]
    return words, -(targets * log_probs).sum(), len(labels)


def blur_table(width: float, device: torch.device) -> Tensor:
    """float32 [1000, 1000]; row n is a Gaussian of this width in bins around n, summing to one (as in Imani
    and White, Improving Regression Performance with Distributional Losses, 2018)."""
    bins = torch.arange(BINS, device=device, dtype=torch.float32)
    return functional.softmax(-((bins[:, None] - bins) ** 2) / (2 * width**2), dim=1)


def head_loss(head: PlainHead, features: Tensor, batch: Batch, locations: Tensor, blur: Tensor) -> Tensor:
    """The plain head's loss: background, presence at each token, everything else only where there is a
    thing."""
    owner, cell, shape, colour, size, word = batch.things[:, :6].unbind(1)
    cells = features[:, 1:].float()
    presence = torch.zeros(cells.shape[:2], device=cells.device)
    presence[owner, cell] = 1.0
    chosen = cells[owner, cell]
    everywhere = head(cells.flatten(0, 1))[0].view_as(presence)
    loss = 4 * functional.binary_cross_entropy_with_logits(everywhere, presence)
    tone, texture = batch.grounds.unbind(1)
    tones, textures = head.ground_logits(features[:, 0].float())
    _, shapes, colours, sizes, words = head(chosen)
    for logits, target in (
        (tones, tone), (textures, texture), (shapes, shape), (colours, colour), (sizes, size),
    ):  # fmt: skip
        loss = loss + functional.cross_entropy(logits, target)
    if bool((word >= 0).any()):
        loss = loss + functional.cross_entropy(words[word >= 0], word[word >= 0])
    boxes, outlines = head.location_logits(chosen, locations)
    log_probs = functional.log_softmax(boxes, dim=2)
    loss = loss - (blur[batch.things[:, 6:]] * log_probs).sum(2).mean()
    real = batch.outlines != IGNORED
    log_probs = functional.log_softmax(outlines[real], dim=1)
    return loss - (blur[batch.outlines[real]] * log_probs).sum(1).mean()
