"""Normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmlab.config import check_choices, require


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Which normalisation a network uses everywhere.

    Args:
        kind: `layernorm` subtracts the mean and divides by the deviation; `rmsnorm` divides by the root mean square only.
        eps: Added to the variance or mean square.
        bias: Whether a LayerNorm shifts as well as scales; an RMSNorm never does.

    Source: Ba et al. 2016, eq. 4; Zhang and Sennrich 2019, eq. 4.
    """

    kind: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    eps: float = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        """Checks choices and ranges."""
        check_choices(self)
        require(self.eps > 0, self, "eps", "it keeps the division finite", "families use 1e-12 (BERT), 1e-5 (GPT-2, Llama) or 1e-6 (T5)")
        require(self.kind == "layernorm" or not self.bias, self, "bias", "an RMSNorm has no shift", "set it to false, or kind to layernorm")


def build_norm(config: NormConfig, size: int) -> nn.LayerNorm | nn.RMSNorm:
    """Makes a normalisation over the last dimension.

    Args:
        config: Which kind.
        size: Width of the last dimension.
    """
    if config.kind == "layernorm":
        return nn.LayerNorm(size, eps=config.eps, bias=config.bias)
    return nn.RMSNorm(size, eps=config.eps)
