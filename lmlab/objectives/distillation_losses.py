"""What a student is trained on: labels, its teacher's answers, and what goes on inside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lmlab.backbones.features import AttentionFeatures, Features, attention_scores, relation_scores
from lmlab.config import require
from lmlab.nn.attention import AttentionConfig
from lmlab.nn.divergences import DivergenceConfig
from lmlab.objectives.layer_map import FeatureMatch, check_names


@dataclass(frozen=True, kw_only=True)
class ResponseConfig(DivergenceConfig):
    """How the student's answers are compared with the teacher's.

    Args:
        kind: Which divergence, see `DivergenceConfig`.
        temperature: Logits of both are divided by it.
        beta: Of `jsd`.
        weight: Share in the total.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what is no divergence, and a weight without effect."""
        super().__post_init__()
        require(0 < self.weight < inf, self, "weight", "it says how much the answers count", "set a positive number, or response to null")


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The terms of a distillation, each a mean over the whole step.

    Args:
        labels: Weight of the student's own loss; 0 only reports it.
        response: Divergence of its predictions from the teacher's, at the labelled positions; None for none.
        features: The layer map; empty for none.
    """

    labels: float = 1.0
    response: ResponseConfig | None = None
    features: tuple[FeatureMatch, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a distillation without a teacher's say."""
        require(0 <= self.labels < inf, self, "labels", "a weight is finite and not negative", "0 leaves the labels out")
        asked = self.response is not None or bool(self.features)
        require(asked, self, "features", "nothing is asked of the teacher: neither response nor features", "set `response: {}`")
        check_names(self.features)


def feature_loss(
    match: FeatureMatch,
    layers: tuple[int, int],
    teacher: Features,
    student: Features,
    real: Tensor | None,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """The sum over the rows that count, in float32 or wider; to be divided by `FeatureMatch.count`.

    Args:
        match: What is compared.
        layers: Of teacher and student, counted from 1.
        teacher: What was noted of the teacher.
        student: What was noted of the student.
        real: (B, T) bool, where tokens are no padding; None if nowhere is any.
        project: Brings the student's states to the teacher's width.

    Returns:
        (), not negative, and zero where the two are equal.
    """
    first, second = layers
    if match.feature in ("scores", "relation"):
        rows = _attention_loss(match, teacher.attention[first], student.attention[second])
    else:
        theirs = teacher.embedding if match.feature == "embedding" else teacher.hidden[first]
        ours = student.embedding if match.feature == "embedding" else student.hidden[second]
        assert theirs is not None and ours is not None
        if match.rows == "first":
            return states_loss(theirs[:, 0], project(ours[:, 0]), match.loss).sum()
        rows = states_loss(theirs, project(ours), match.loss)
    return rows.sum() if real is None else rows.masked_fill(~real.bool(), 0.0).sum()


def states_loss(teacher: Tensor, student: Tensor, loss: str) -> Tensor:
    """Compares vectors.

    One minus the cosine is half of the squared distance between the two directions, and is computed so: then rounding cannot make it
    negative.

    Args:
        teacher: (..., D).
        student: (..., D).
        loss: `mse`, `pkd` or `cosine`.

    Returns:
        (...,) float32 or wider.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", equation 7.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    teacher, student = teacher.to(wide), student.to(wide)
    if loss == "mse":
        return (student - teacher).square().mean(-1)
    far = (_direction(student) - _direction(teacher)).square().sum(-1)
    return far if loss == "pkd" else far / 2


def _direction(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _attention_loss(match: FeatureMatch, teacher: AttentionFeatures, student: AttentionFeatures) -> Tensor:
    """(B, T): for each query, the mean over heads; for `relation`, summed over queries, keys and values."""
    allowed = both(teacher.allowed, student.allowed)
    if match.feature == "scores":
        return matrix_loss(attention_scores(teacher), attention_scores(student), allowed, match.loss)
    heads = match.relation_heads or teacher.query.shape[2]
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(relation_scores(teacher, heads), relation_scores(student, heads), strict=True)
    terms = [matrix_loss(theirs, ours, allowed, "kl") for theirs, ours in pairs]
    return torch.stack(terms).sum(0)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Where two networks may attend.

    Args:
        first: bool mask, None for everywhere.
        second: The same.
    """
    return second if first is None else first if second is None else first & second


def matrix_loss(teacher: Tensor, student: Tensor, allowed: Tensor | None, loss: str) -> Tensor:
    """Compares what queries have to do with keys, for each query: mean over heads, and over the keys it may attend or their softmax.

    Args:
        teacher: (B, H, T, S) scores.
        student: (B, H, T, S) scores.
        allowed: Broadcastable bool, where attention is possible; None for everywhere. A query that may attend nothing counts zero.
        loss: `mse` of the scores, or `kl` of the softmax.

    Returns:
        (B, T).
    """
    if loss == "mse":
        squares = (student - teacher).square()
        if allowed is None:
            return squares.mean((1, 3))
        keys = allowed.sum(-1).clamp(min=1)  # (B, 1, T)
        return (squares.masked_fill(~allowed, 0.0).sum(-1) / keys).mean(1)
    if allowed is not None:
        blind = ~allowed.any(-1, keepdim=True)  # a softmax over nothing would be NaN, and so would all gradients
        teacher, student = (scores.masked_fill(~(allowed | blind), -torch.inf) for scores in (teacher, student))
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    terms = p.exp() * (p - q) if allowed is None else p.exp() * (p - q).masked_fill(~allowed, 0.0)
    return terms.sum(-1).clamp(min=0.0).mean(1)  # rounding may put a sum just below zero


def attention_flops(match: FeatureMatch, config: AttentionConfig, size: int, length: int) -> int:
    """Multiplications and additions of a network's matrices between tokens, once forward.

    Args:
        match: What is compared.
        config: Of its attentions.
        size: B.
        length: T.
    """
    queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    channels = {"scores": queries, "relation": queries + 2 * keys}.get(match.feature, 0)
    return 2 * size * length * length * channels
