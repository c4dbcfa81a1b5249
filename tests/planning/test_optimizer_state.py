"""State of optimisers, against that of the same optimisers on parameters of the real sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmlab.optim import OptimizerConfig
from lmlab.planning.optimizer_state import optimizer_states
from lmlab.planning.weights import weights_of


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12, dtype=dtype)
        self.fc = nn.Linear(12, 36, dtype=dtype)
        self.norm = nn.LayerNorm(36, dtype=dtype)
        self.stack = nn.Parameter(torch.zeros(4, 6, 8, dtype=dtype))
        self.frozen_scale = nn.Parameter(torch.zeros(9, dtype=dtype), requires_grad=False)


CONFIGS = [
    OptimizerConfig(),
    OptimizerConfig(name="muon"),
    OptimizerConfig(name="adafactor"),
    OptimizerConfig(name="sgd"),
    OptimizerConfig(name="sgd", momentum=0.0),
    OptimizerConfig(name="torch.optim.NAdam", lr=1e-3),
    OptimizerConfig(options={"amsgrad": True}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.momentum}-{len(config.options)}")
def test_state_is_that_of_a_real_step(config: OptimizerConfig, dtype: torch.dtype) -> None:
    net = Net(dtype)
    optimizer = config.build(net.named_parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    names = {parameter: name for name, parameter in net.named_parameters()}
    real = {names[p]: sum(t.nbytes for t in s.values() if isinstance(t, torch.Tensor)) for p, s in optimizer.state.items()}
    planned = optimizer_states(list(weights_of(net)), config, dtype)
    found = {name: sum(state.nbytes for state in states) for name, states in planned.items()}
    assert {name: size for name, size in found.items() if size} == {name: size for name, size in real.items() if size}


def test_adamw_takes_eight_bytes_an_element_and_a_count() -> None:
    net = Net(torch.float32)
    planned = optimizer_states(list(weights_of(net)), OptimizerConfig(), torch.float32)
    assert sum(state.nbytes for state in planned["fc.weight"]) == 8 * 12 * 36 + 4
    assert "frozen_scale" not in planned
