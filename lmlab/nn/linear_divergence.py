"""The divergence of a student's vocabulary scores from a teacher's, made for the memory it moves.

Neither network's scores ever exist as a whole: a few rows at a time are scored by both, compared, and turned into gradients at once, as
`lmlab.nn.cross_entropy` does for labels. The labels can be had on the same way, since the student's scores are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab.data.batch import IGNORE_INDEX
from lmlab.nn.cross_entropy import ROWS_AT_LEAST, SCORES_AT_ONCE
from lmlab.nn.divergences import DivergenceConfig, log_probs, mixed, with_slope
from lmlab.nn.mask import compute_dtype


class Scores(NamedTuple):
    """What vocabulary scores are computed from: `vectors @ weight.T + bias`.

    Args:
        vectors: (N, D).
        weight: (V, D).
        bias: (V,), or None.
    """

    vectors: Tensor
    weight: Tensor
    bias: Tensor | None

    def of(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """(n, V) scores of some rows.

        Args:
            rows: Which.
            dtype: To multiply in.
        """
        return F.linear(self.vectors[rows].to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


class Compared(NamedTuple):
    """Sums over rows.

    Args:
        divergence: () float32, of student from teacher.
        nats: () float32, cross-entropy of the labels. It carries no gradient of its own: see `linear_divergence`.
    """

    divergence: Tensor
    nats: Tensor


def linear_divergence(
    student: Scores, teachers: Sequence[Scores], shares: Sequence[float], labels: Tensor, config: DivergenceConfig, label_share: float
) -> Compared:
    """Compares a student with the mean of its teachers, and with labels.

    The gradient of `divergence` is that of `divergence + label_share * nats`, and `nats` has none: where both are divided by one count,
    the ratio of their weights is known beforehand, and one product with the vocabulary matrix serves both.

    Args:
        student: Its scores; `vectors`, `weight` and `bias` get gradients where they need them.
        teachers: Theirs, without gradients.
        shares: Weight of each teacher in the mean of their probabilities.
        labels: (N,) int64; where one is `IGNORE_INDEX`, the row counts for the divergence only.
        config: Which divergence.
        label_share: Weight of the labels' cross-entropy over that of the divergence.
    """
    vectors, weight, bias = student
    if not torch.is_grad_enabled():
        vectors, weight, bias = vectors.detach(), weight.detach(), None if bias is None else bias.detach()
    return Compared(*_LinearDivergence.apply(vectors, weight, bias, _Task(list(teachers), list(shares), labels, config, label_share)))  # type: ignore[misc]  # `apply` is not typed


class _Task(NamedTuple):
    """What needs no gradient; in a tuple of its own, so that autograd does not look for tensors in it."""

    teachers: list[Scores]
    shares: list[float]
    labels: Tensor
    config: DivergenceConfig
    label_share: float

    def target(self, rows: slice, dtype: torch.dtype) -> Tensor:
        each = [log_probs(teacher.of(rows, dtype), self.config.temperature) for teacher in self.teachers]
        return mixed(each, self.shares)


class _LinearDivergence(torch.autograd.Function):
    """Makes the gradients on the way forward, while both distributions are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> tuple[Tensor, Tensor]:
        dtype, needed = compute_dtype(vectors), ctx.needs_input_grad[:3]
        ctx.dtypes = [None if x is None else x.dtype for x in (vectors, weight, bias)]
        student = Scores(vectors.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        exact = torch.promote_types(dtype, torch.float32)
        vector_slope = torch.empty_like(student.vectors) if needed[0] else None
        weight_slope = torch.zeros_like(student.weight, dtype=exact) if needed[1] else None
        bias_slope = torch.zeros_like(student.bias, dtype=exact) if student.bias is not None and needed[2] else None
        sums = vectors.new_zeros(2, dtype=exact)
        size = max(ROWS_AT_LEAST, SCORES_AT_ONCE // len(weight))
        for start in range(0, len(vectors), size):
            rows = slice(start, start + size)
            slope = _compare(student.of(rows, dtype), task.target(rows, dtype), task, task.labels[rows], sums)
            if any(needed):
                slope = slope.to(dtype)
                if vector_slope is not None:
                    vector_slope[rows] = slope @ student.weight
                if weight_slope is not None:
                    weight_slope += slope.t() @ student.vectors[rows]
                if bias_slope is not None:
                    bias_slope += slope.sum(0, dtype=exact)
        ctx.save_for_backward(vector_slope, weight_slope, bias_slope)
        divergence, nats = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(nats)
        return divergence, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch declares it with *args
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if slope is None else (slope * scale).to(dtype) for slope, dtype in pairs), None


def _compare(scores: Tensor, target: Tensor, task: _Task, labels: Tensor, sums: Tensor) -> Tensor:
    """Adds divergence and cross-entropy of some rows to `sums`; returns the slope of what is differentiated in their scores, (n, V)."""
    config = task.config
    softened = log_probs(scores, config.temperature)
    values, slope = with_slope(target, softened, config)
    sums[0] += values.sum()
    plain = softened if config.temperature == 1.0 else log_probs(scores, 1.0)
    ignored = (labels == IGNORE_INDEX)[:, None]  # (n, 1)
    places = labels[:, None].masked_fill(ignored, 0)  # (n, 1)
    sums[1] -= plain.gather(1, places).masked_fill(ignored, 0.0).sum()
    if task.label_share:
        labelled = plain.exp().scatter_add_(1, places, -torch.ones_like(places, dtype=plain.dtype))
        slope = slope.add(labelled.masked_fill(ignored, 0.0), alpha=task.label_share)
    return slope
