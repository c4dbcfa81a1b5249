"""A student's answers beside its teachers': the divergence of their predictions at the labelled positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.data.batch import IGNORE_INDEX
from lmlab.heads import VocabularyHead
from lmlab.nn.divergences import DivergenceConfig, divergence, log_probs, mixed
from lmlab.nn.linear_divergence import Compared, Scores, linear_divergence


def compare_answers(
    student: tuple[VocabularyHead, Tensor],
    teachers: Sequence[tuple[VocabularyHead, Tensor]],
    shares: Sequence[float],
    labels: Tensor,
    config: DivergenceConfig,
    label_share: float,
) -> Compared:
    """Sums the divergence of the student from the weighted mean of its teachers, and the cross-entropy of the labels.

    Args:
        student: Its head, and (N, D) states.
        teachers: Theirs, of the same positions.
        shares: Of each teacher; they add up to 1.
        labels: (N,) int64; `IGNORE_INDEX` where there is none.
        config: Which divergence.
        label_share: What the gradient of `divergence` holds of the gradient of `nats`, see `linear_divergence`.
    """
    head, rows = student
    with torch.no_grad():
        theirs = [_scores(other, states) for other, states in teachers]
    if _is_plain(head) and all(_is_plain(other) for other, _ in teachers) and not torch.compiler.is_compiling():
        return linear_divergence(_scores(head, rows), theirs, shares, labels, config, label_share)
    with torch.no_grad():
        target = mixed([log_probs(other(states), config.temperature) for other, states in teachers], shares)
    logits = head(rows)
    total = divergence(target, log_probs(logits, config.temperature), config).sum()
    nats = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return Compared(total + label_share * (nats - nats.detach()), nats.detach())


def _is_plain(head: VocabularyHead) -> bool:
    """Whether its matrix is used as it is: not wrapped or parametrised by an adaptation."""
    return head.decoder is None or type(head.decoder) is nn.Linear


def _scores(head: VocabularyHead, rows: Tensor) -> Scores:
    vectors, scale = head.project(rows), head.config.logit_scale
    return Scores(vectors if scale == 1.0 else vectors * scale, head.weight, head.bias)
