"""Combinations of gradients, against numbers worked out by hand and against the algorithm as it is written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lmlab.optim.gradient_rules import combined, cosines, inner_products, pcgrad

ROUNDING = 1e-5  # float32 dot products


def as_written(gradients: Sequence[Tensor], orders: Sequence[Sequence[int]]) -> Tensor:
    """Algorithm 1 of Yu et al. 2020, on whole vectors."""
    projected = []
    for task, order in enumerate(orders):
        current = gradients[task].clone()
        for other in order:
            if other != task and torch.dot(current, gradients[other]) < 0:
                current = current - torch.dot(current, gradients[other]) / gradients[other].norm() ** 2 * gradients[other]
        projected.append(current)
    return torch.stack(projected).sum(0)


def in_parts(vector: Tensor) -> list[Tensor]:
    """As the gradients of a matrix and a vector."""
    return [vector[:6].view(2, 3), vector[6:]]


def whole(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def test_two_tasks_that_oppose_each_other() -> None:
    """g1 = (1, 0) and g2 = (-1, 1): g1 + g2/2 = (1/2, 1/2), g2 + g1 = (0, 1); their sum is (1/2, 3/2)."""
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    products = inner_products(gradients)
    assert products.tolist() == [[1.0, -1.0], [-1.0, 2.0]]
    assert cosines(products)[0, 1].item() == pytest.approx(-(0.5**0.5))
    [found] = combined(gradients, pcgrad(products, np.random.default_rng(0)))
    assert found.tolist() == pytest.approx([0.5, 1.5])


def test_tasks_that_do_not_oppose_each_other_are_summed() -> None:
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([0.5, 2.0])], [torch.tensor([0.0, 3.0])]]
    assert pcgrad(inner_products(gradients), np.random.default_rng(0)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", range(20))
def test_many_tasks_in_random_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(10, generator=generator) for _ in range(4)]
    replay = np.random.default_rng(seed)
    orders = [replay.permutation(4).tolist() for _ in range(4)]
    gradients = [in_parts(vector) for vector in vectors]
    found = whole(combined(gradients, pcgrad(inner_products(gradients), np.random.default_rng(seed))))
    assert torch.allclose(found, as_written(vectors, orders), rtol=ROUNDING, atol=ROUNDING)


def test_the_order_decides_where_three_tasks_meet() -> None:
    vectors = [torch.tensor([1.0, 0.1, 0.0]), torch.tensor([-1.0, 0.5, 0.2]), torch.tensor([-0.8, -0.6, 0.1])]
    products = inner_products([[vector] for vector in vectors])
    assert len({tuple(pcgrad(products, np.random.default_rng(seed)).tolist()) for seed in range(20)}) > 1


def test_a_task_without_a_gradient_harms_nobody() -> None:
    gradients = [[torch.tensor([1.0, 0.0])], [torch.zeros(2)]]
    products = inner_products(gradients)
    assert cosines(products)[0, 1].item() == 0.0
    [found] = combined(gradients, pcgrad(products, np.random.default_rng(0)))
    assert found.tolist() == [1.0, 0.0]
