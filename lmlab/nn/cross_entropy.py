"""Cross-entropy of a vocabulary's scores, made for the memory it moves: at small widths the vocabulary is half of a training step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab.data.batch import IGNORE_INDEX
from lmlab.errors import DataError
from lmlab.nn.mask import compute_dtype

SCORES_AT_ONCE, ROWS_AT_LEAST = 1 << 22, 256
"""Scores held at any time: 8 MB in bfloat16. More rows than this asks for spare additions to the gradient of the matrix."""
SOFTMAX_AT_ONCE = 1 << 18
"""Of these, how many the softmax works on at a time: a megabyte in float32, so that its passes stay in a core's cache."""


def linear_cross_entropy(vectors: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Sum of the negative log-probabilities of the labels under `softmax(vectors @ weight.T + bias)`, for CPUs.

    Neither all scores nor their gradient ever exist, and nothing but the softmax of a few rows is in float32 under autocast. That
    takes about half the time of a projection and torch's cross-entropy, and a fraction of their memory.

    Args:
        vectors: (N, D).
        weight: (V, D).
        bias: (V,), or None.
        labels: (N,) int64 in [0, V); `IGNORE_INDEX` where there is no loss.

    Returns:
        () float32, or float64 of what is float64. It can be differentiated once.

    Raises:
        DataError: If a label is no entry of the vocabulary.

    Source: the idea of making the gradient on the way forward, in chunks: Hsu et al. 2024, "Liger Kernel", section 3.2.
    """
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= len(weight)))
    if bool(wrong.any()):
        raise DataError(
            f"label {labels[wrong][0].item()} is not in the vocabulary",
            why=f"labels go from 0 to {len(weight) - 1}, or are {IGNORE_INDEX} where there is no loss",
            remedy="were the data made with another tokenizer?",
        )
    if not torch.is_grad_enabled():  # a function's own `needs_input_grad` does not know about it
        vectors, weight, bias = vectors.detach(), weight.detach(), None if bias is None else bias.detach()
    return _LinearCrossEntropy.apply(vectors, weight, bias, labels)  # type: ignore[return-value]  # `apply` is not typed


class _Gradients:
    """Gradients of what needs one, filled chunk by chunk; sums over rows are kept in `dtype`."""

    def __init__(self, vectors: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], dtype: torch.dtype) -> None:
        self.vectors = torch.empty_like(vectors) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=dtype) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needed[2] else None

    def add(self, rows: slice, chunk: Tensor, weight: Tensor, scores: Tensor) -> None:
        """Takes in the gradient of a chunk's `scores`, (n, V)."""
        if self.vectors is not None:
            self.vectors[rows] = scores @ weight
        if self.weight is not None:
            self.weight += scores.t() @ chunk
        if self.bias is not None:
            self.bias += scores.sum(0, dtype=self.bias.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Makes the gradients on the way forward, while the softmax is at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        dtype, needed = compute_dtype(vectors), ctx.needs_input_grad[:3]
        ctx.dtypes = [None if x is None else x.dtype for x in (vectors, weight, bias)]
        vectors, weight, bias = vectors.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        gradients = _Gradients(vectors, weight, bias, needed, exact)
        nats = torch.zeros((), dtype=exact)
        size = max(ROWS_AT_LEAST, SCORES_AT_ONCE // len(weight))
        for start in range(0, len(vectors), size):
            rows = slice(start, start + size)
            scores = F.linear(vectors[rows], weight, bias)  # (n, V)
            nats += _nats(scores, labels[rows], exact, replace=any(needed))
            if any(needed):
                gradients.add(rows, vectors[rows], weight, scores)
        ctx.save_for_backward(gradients.vectors, gradients.weight, gradients.bias)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch declares it with *args
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if gradient is None else (gradient * scale).to(dtype) for gradient, dtype in pairs), None


def _nats(scores: Tensor, labels: Tensor, dtype: torch.dtype, *, replace: bool) -> Tensor:
    """The loss of scores, () in `dtype`; on request replaces them, in place, by its gradient: the softmax minus the one-hot labels."""
    nats = torch.zeros((), dtype=dtype)
    size = max(1, SOFTMAX_AT_ONCE // scores.shape[1])
    for some, wanted in zip(scores.split(size), labels.split(size), strict=True):
        log_probs = F.log_softmax(some, dim=-1, dtype=dtype)
        ignored = (wanted == IGNORE_INDEX)[:, None]  # (n, 1)
        places = wanted[:, None].masked_fill(ignored, 0)  # (n, 1)
        chosen = log_probs.gather(1, places)
        nats -= chosen.masked_fill(ignored, 0.0).sum()  # a product would let what is not a number through
        if replace:
            probs = log_probs.exp_().scatter_(1, places, chosen.exp() - 1)
            some.copy_(probs.masked_fill_(ignored, 0.0) if bool(ignored.any()) else probs)
    return nats
