"""What is made of the gradients of several tasks: their angles, and combinations other than the sum.

A combination of gradients is a list of one coefficient per task, and everything that decides the coefficients stands in the matrix of the
inner products. So each gradient is read once for the products and once for the sum, however many tasks are projected on each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def inner_products(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """The inner product of each pair of gradients.

    Args:
        gradients: For each of K tasks the gradient of the same parameters, in the same order.

    Returns:
        (K, K) float64, symmetric; on the diagonal the squared norms.
    """
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for row, first in enumerate(gradients):
        for column, second in enumerate(gradients[: row + 1]):
            # parameter by parameter in float32 and summed up in float64: enough for an angle, and no copy of everything
            dots = [torch.dot(a.flatten().float(), b.flatten().float()) for a, b in zip(first, second, strict=True)]
            products[row, column] = products[column, row] = torch.stack(dots).cpu().double().sum()
    return products


def cosines(products: Tensor) -> Tensor:
    """The cosine of the angle between each pair of gradients.

    Args:
        products: (K, K) inner products.

    Returns:
        (K, K) float64 in [-1, 1]; 0 where a gradient is zero.
    """
    norms = products.diagonal().clamp(min=0).sqrt()
    return (products / (norms[:, None] * norms).clamp(min=torch.finfo(torch.float64).tiny)).clamp(-1, 1)


def pcgrad(products: Tensor, order: np.random.Generator) -> Tensor:
    """Projecting conflicting gradients: each task's gradient is freed from what opposes the others', then all are summed.

    A gradient g_i is taken through the other tasks j in random order; where its product with g_j is negative, its part along g_j is
    taken away. Each g_j is the task's own gradient, not a projected one.

    Args:
        products: (K, K) inner products of the gradients.
        order: Draws the order in which each task is taken through the others.

    Returns:
        (K,) float64: how often each task's gradient is in the sum of the projected ones.

    Source: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1.
    """
    shares = torch.eye(len(products), dtype=torch.float64)  # row i: the projected gradient of task i, in terms of all
    for task, own in enumerate(shares):
        for other in order.permutation(len(products)):
            along = own @ products[:, other]
            if other != task and along < 0:
                own[other] -= along / products[other, other]
    return shares.sum(0)


def combined(gradients: Sequence[Sequence[Tensor]], coefficients: Tensor) -> list[Tensor]:
    """A weighted sum of gradients.

    Args:
        gradients: For each of K tasks the gradient of the same parameters.
        coefficients: (K,).

    Returns:
        One gradient, parameter by parameter.
    """
    weights = coefficients.tolist()
    return [
        torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0) for parts in zip(*gradients, strict=True)
    ]
