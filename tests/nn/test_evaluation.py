"""Asking a network in the middle of its training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmlab.nn.evaluation import evaluating, with_dropout


@pytest.mark.parametrize("training", [True, False])
def test_no_dropout_and_no_gradients_inside_and_no_trace_afterwards(training: bool) -> None:
    """Also after an error; a part that is in another mode than the whole stays in it."""
    part = nn.Sequential(nn.Dropout(0.9))
    module = nn.Sequential(nn.Linear(3, 3), part, nn.Dropout(0.9)).train(training)
    part.train(not training)
    before = [m.training for m in module.modules()]
    assert len(set(before)) == 2
    x = torch.ones(2, 3)
    with evaluating(module):
        torch.testing.assert_close(module(x), nn.functional.linear(x, *module[0].parameters()))
        assert not module(x).requires_grad
    assert [m.training for m in module.modules()] == before and torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(module):
        _ = 1 / 0
    assert [m.training for m in module.modules()] == before and torch.is_grad_enabled()


def test_what_a_part_uses_without_owning_it_rests_too() -> None:
    lent, part = nn.Dropout(0.9), nn.Sequential(nn.Dropout(0.9))
    part.borrowed = (lent,)  # type: ignore[assignment]
    with evaluating(nn.Sequential(part)):
        assert not lent.training and not part.training
    assert lent.training and part.training


def test_dropout_in_an_evaluation_leaves_no_trace() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
    state, x = torch.get_rng_state(), torch.ones(50, 3)
    drawn = []
    for seed in (1, 1, 2):
        with with_dropout(module, seed):
            drawn.append(module(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and (drawn[0] == 0).any()
    assert torch.equal(torch.get_rng_state(), state) and not any(part.training for part in module.modules())
