"""Losses between layers: against loops and torch's own; their signs, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lmlab.errors import ConfigError
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig, both, matrix_loss, states_loss

SHAPE = (2, 3, 5, 5)  # B, H, T, S


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal() -> torch.Tensor:
    return torch.ones(5, 5, dtype=torch.bool).tril()[None, None]


def test_states_against_torch() -> None:
    teacher, student = draw(2, 5, 7), draw(2, 5, 7, seed=1)
    torch.testing.assert_close(states_loss(teacher, student, "mse").mean(), F.mse_loss(student, teacher))
    flat = student.flatten(0, 1), teacher.flatten(0, 1)
    torch.testing.assert_close(states_loss(teacher, student, "cosine").mean(), F.cosine_embedding_loss(*flat, torch.ones(10)))
    far = (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)
    torch.testing.assert_close(states_loss(teacher, student, "pkd"), far)


def test_scores_by_a_loop_over_what_each_query_may_attend() -> None:
    teacher, student, allowed = draw(*SHAPE), draw(*SHAPE, seed=1), causal()
    squares, kl = matrix_loss(teacher, student, allowed, "mse"), matrix_loss(teacher, student, allowed, "kl")
    for b in range(2):
        for query in range(5):
            keys = range(query + 1)
            wanted_square = wanted_kl = 0.0
            for head in range(3):
                wanted_square += sum((student[b, head, query, k] - teacher[b, head, query, k]).item() ** 2 for k in keys) / len(keys) / 3
                p, q = (x[b, head, query, : query + 1].softmax(-1).tolist() for x in (teacher, student))
                wanted_kl += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / 3
            assert squares[b, query].item() == pytest.approx(wanted_square, rel=1e-5)
            assert kl[b, query].item() == pytest.approx(wanted_kl, rel=1e-4, abs=1e-7)
    torch.testing.assert_close(matrix_loss(teacher, student, None, "mse").mean(), F.mse_loss(student, teacher))


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_what_cannot_be_attended_neither_counts_nor_gets_a_gradient(loss: str) -> None:
    teacher, allowed = draw(*SHAPE), causal().clone()
    allowed[..., 2, :] = False  # a query that may attend nothing
    student = draw(*SHAPE, seed=1).requires_grad_()
    rows = matrix_loss(teacher, student, allowed, loss)
    rows.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert not student.grad[~allowed.expand(SHAPE)].any() and not rows[:, 2].any()
    wild = teacher.masked_fill(~allowed, 1e9)
    assert torch.equal(matrix_loss(wild, student, allowed, loss), rows)


def test_masks_are_joined() -> None:
    mask, other = causal(), ~torch.eye(5, dtype=torch.bool)[None, None]
    assert both(None, None) is None and both(mask, None) is mask and both(None, other) is other
    joined = both(mask, other)
    assert joined is not None and torch.equal(joined, mask & other)


@pytest.mark.parametrize("loss", ["mse", "cosine", "pkd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_states_cost_nothing_and_none_costs_less(loss: str, dtype: torch.dtype) -> None:
    teacher = draw(50, 33).to(dtype)
    assert not states_loss(teacher, teacher.clone(), loss).any()
    for scale in (1e-4, 1e-2, 1.0):
        assert (states_loss(teacher, teacher + (scale * draw(50, 33, seed=1)).to(dtype), loss) >= 0).all()


def test_equal_scores_cost_nothing_and_none_costs_less() -> None:
    teacher = draw(*SHAPE)
    for loss in ("mse", "kl"):
        assert not matrix_loss(teacher, teacher.clone(), causal(), loss).any()
        for scale in (1e-5, 1e-2, 1.0):
            assert (matrix_loss(teacher, teacher + scale * draw(*SHAPE, seed=1), causal(), loss) >= 0).all()


def test_a_zero_vector_has_no_direction_and_no_infinite_slope() -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    states_loss(draw(1, 4), student, "cosine").sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: DistillationLoss(labels=1.0), "nothing is asked of the teacher"),
        (lambda: DistillationLoss(labels=0.0), "nothing is asked of the teacher"),
        (lambda: DistillationLoss(labels=-1.0, response=ResponseConfig()), "not negative"),
        (lambda: ResponseConfig(weight=0.0), "set a positive number"),
        (lambda: ResponseConfig(weight=math.inf), "set a positive number"),
        (lambda: DistillationLoss(labels=math.inf, response=ResponseConfig()), "finite"),
    ],
)
def test_weights_without_effect_are_refused(make, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()
