"""What can be said of vectors without labels: how near pairs are, how evenly all are spread, how many directions they use."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 2.0
"""t of the Gaussian potential in the uniformity (Wang & Isola 2020, section 4.1)."""


def squared_distances(vectors: Tensor, others: Tensor) -> Tensor:
    """Of pairs, after normalisation; their mean is the alignment.

    Args:
        vectors: (N, D).
        others: (N, D), each belongs to the vector in its place.

    Returns:
        (N,) float32, in [0, 4].

    Source: Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
    section 4.1.1, with alpha = 2.
    """
    return (_unit(vectors) - _unit(others)).square().sum(-1)


def potentials(vectors: Tensor) -> Tensor:
    """Gaussian potential of each two different rows, after normalisation; the logarithm of their mean is the uniformity.

    Args:
        vectors: (N, D).

    Returns:
        (N (N - 1) / 2,) float32, in (0, 1].

    Source: Wang & Isola 2020, section 4.1.2.
    """
    return torch.pdist(_unit(vectors)).square().mul(-SHARPNESS).exp()


class Moments(NamedTuple):
    """Sums over vectors, from which means over more of them can be made.

    Args:
        first: (D,) float64.
        second: (D, D) float64.
    """

    first: Tensor
    second: Tensor


def moments(vectors: Tensor) -> Moments:
    """Sums of normalised vectors and of their products.

    Args:
        vectors: (N, D).
    """
    unit = _unit(vectors).double() if vectors.device.type != "mps" else _unit(vectors)  # Apple's GPUs have no float64
    return Moments(unit.sum(0), unit.T @ unit)


def effective_rank(mean: Tensor, mean_product: Tensor) -> float:
    """How many directions vectors spread over: the exponential of the entropy of the covariance's singular values.

    Args:
        mean: (D,) float64, of the vectors.
        mean_product: (D, D) float64, of their outer products.

    Returns:
        From 1 (all on one line) to D (alike in every direction); NaN if the vectors do not differ, or are not finite.

    Source: Roy & Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality", definition 1.
    """
    covariance = mean_product - torch.outer(mean, mean)
    if not covariance.isfinite().all():  # of a diverged network, which the decomposition would stumble over
        return math.nan
    spread = torch.linalg.svdvals(covariance)
    share = spread / spread.sum()
    return torch.special.entr(share).sum().exp().item()


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)
