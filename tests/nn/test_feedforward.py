"""Feed-forward networks against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmlab.nn.feedforward import FeedForward, FeedForwardConfig
from lmlab.nn.init import InitConfig


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


PLAIN = {"relu": _relu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}
GATED = {"reglu": _relu, "geglu": _gelu, "geglu_tanh": _gelu_tanh, "swiglu": _silu}


@pytest.mark.parametrize("activation", [*PLAIN, *GATED])
@pytest.mark.parametrize("bias", [True, False])
def test_formula(activation, bias) -> None:
    """fc2(f(fc1 x)), or fc2(f(gate x) * fc1 x)."""
    config = FeedForwardConfig(hidden_size=6, inner_size=10, activation=activation, bias=bias, dropout=0.0)
    module = FeedForward(config, InitConfig(std=0.7))
    x = torch.randn(2, 3, 6)

    def project(linear: torch.nn.Linear, y: Tensor) -> Tensor:
        return y @ linear.weight.T + (linear.bias if bias else 0.0)

    inner = PLAIN[activation](project(module.fc1, x)) if activation in PLAIN else None
    if inner is None:
        inner = GATED[activation](project(module.gate, x)) * project(module.fc1, x)
    torch.testing.assert_close(module(x), project(module.fc2, inner), rtol=1e-5, atol=1e-6)
    assert config.flops(1) == 2 * sum(p.numel() for p in module.parameters() if p.dim() == 2)
