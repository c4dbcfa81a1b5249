"""Norms against their formulas, and refusals."""

from __future__ import annotations

import pytest
import torch

from lmlab.errors import ConfigError
from lmlab.nn.norm import NormConfig, build_norm


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm(bias) -> None:
    """(x - mean) / sqrt(var + eps), scaled and shifted."""
    norm, x = build_norm(NormConfig(kind="layernorm", eps=0.1, bias=bias), 5), torch.randn(2, 5)
    torch.nn.init.normal_(norm.weight)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    if bias:
        torch.nn.init.normal_(norm.bias)
        expected = expected + norm.bias
    torch.testing.assert_close(norm(x), expected)


def test_rmsnorm() -> None:
    """Inputs over sqrt(mean of squares + eps), scaled."""
    norm, x = build_norm(NormConfig(kind="rmsnorm", eps=0.1), 5), torch.randn(2, 5)
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight)


def test_refusals() -> None:
    """An RMSNorm has no shift, and epsilon is positive."""
    with pytest.raises(ConfigError, match="bias"):
        NormConfig(kind="rmsnorm", bias=True)
    with pytest.raises(ConfigError, match="eps"):
        NormConfig(eps=0.0)
