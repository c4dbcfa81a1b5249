"""InfoNCE: find the vector that belongs to yours among many."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_SCALE = 100.0
"""Most that cosines are multiplied by, so that a learned temperature does not fall below 0.01 (CLIP, section 2.5)."""


class Found(NamedTuple):
    """What a comparison gives.

    Args:
        nats: (B,) float32 cross-entropy of each anchor.
        is_right: (B,) bool, whether its positive is the nearest candidate.
    """

    nats: Tensor
    is_right: Tensor


def info_nce(anchors: Tensor, candidates: Tensor, positives: Tensor, scale: Tensor, log_weights: Tensor | None = None) -> Found:
    """Cross-entropy of a softmax over cosines, in float32.

    Args:
        anchors: (B, D).
        candidates: (C, D).
        positives: (B,) int64, which candidate belongs to each anchor.
        scale: (1,) factor on cosines: one over the temperature.
        log_weights: (B, C) to add to the scaled cosines: -inf for what is not to be compared, the logarithm of a weight for what counts
            more or less than once.

    Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", section 2.3, equation 4.
    """
    # spelled out, because autocast would multiply in half precision
    with torch.autocast(anchors.device.type, enabled=False):
        cosines = F.normalize(anchors.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T
        logits = cosines * scale.float()  # (B, C)
        if log_weights is not None:
            logits = logits + log_weights
        return Found(F.cross_entropy(logits, positives, reduction="none"), logits.argmax(-1) == positives)


def excluded(texts: Tensor, all_texts: Tensor, positives: Tensor) -> Tensor:
    """False negatives: candidates whose text is the anchor's own or its positive's, and positives of a copy of the anchor.

    Args:
        texts: (B, V) int64, a number for each text: the anchor's, its positive's, its hard negative's if there is one.
        all_texts: (G, V) int64, those of all that are compared.
        positives: (B,) int64, which of the candidates belongs to each anchor; it stays.

    Returns:
        (B, G (V - 1)) bool, True where there is nothing to compare. Candidates are all positives, then all hard negatives.
    """
    candidates = all_texts[:, 1:].T.flatten()
    same = (candidates == texts[:, :1]) | (candidates == texts[:, 1:2])
    same[:, : len(all_texts)] |= all_texts[:, 0] == texts[:, :1]
    return same.scatter(1, positives[:, None], False)


def log_scale_of(temperature: float) -> float:
    """What a learned temperature is stored as: the logarithm of the factor on cosines.

    Args:
        temperature: Positive.
    """
    return -math.log(temperature)
