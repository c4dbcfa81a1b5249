"""Asking a network in the middle of its training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmlab.nn.evaluation import evaluating


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
