"""Gradients that come in different orders on different ranks are refused, before they are added up wrongly."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from lmlab.errors import LabError
from lmlab.strategies.zero_order import GradientOrder
from tests.ranks import forked

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def passes() -> None:
    distributed.init_process_group("gloo")
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    order = GradientOrder([a, b], torch.device("cpu"))

    def backward(*parameters: nn.Parameter) -> None:
        for parameter in parameters:
            parameter.sum().backward()

    for _ in range(2):
        backward(a, b)
        order.check()
    backward(a, b)
    backward(b, a)
    order.check()
    backward(*((a, b) if distributed.get_rank() == 0 else (b, a)))
    with pytest.raises(LabError, match="another order"):
        order.check()
    backward(a)
    order.check()  # begins anew
    backward(*((a,) if distributed.get_rank() == 0 else (a, b)))
    with pytest.raises(LabError, match="another order"):
        order.check()
    distributed.destroy_process_group()


def test_ranks_that_differ_are_told() -> None:
    forked(passes)
