"""The position-wise feed-forward network, plain or gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.config import check_choices
from lmlab.nn.init import InitConfig, init_linear

Activation: TypeAlias = Literal["relu", "gelu", "gelu_tanh", "silu", "reglu", "geglu", "geglu_tanh", "swiglu"]
"""Non-linearities. The four that end in `glu` (or `glu_tanh`) gate one projection by the activation of another."""

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
_GATES = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def is_gated(activation: Activation) -> bool:
    """Whether the feed-forward network has a gate, and so a third matrix."""
    return activation in _GATES


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The elementwise function; for a gated kind, the one on the gate.

    Source: GELU: Hendrycks and Gimpel 2016, section 2 (`gelu_tanh`: the approximation given there); gates: Shazeer 2020, eq. 5-6.
    """
    return _FUNCTIONS[_GATES.get(activation, activation)]


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Sizes and constants of a feed-forward network.

    Args:
        hidden_size: D.
        inner_size: F.
        activation: Plain: fc2(f(fc1 x)). Gated: fc2(f(gate x) * fc1 x).
        bias: Whether the projections have biases.
        dropout: Probability that an inner activation is dropped in training (T5; other families leave it 0).
    """

    hidden_size: int
    inner_size: int
    activation: Activation
    bias: bool
    dropout: float

    def __post_init__(self) -> None:
        """Checks choices."""
        check_choices(self)

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over B * T `rows`."""
        return 2 * (3 if is_gated(self.activation) else 2) * self.hidden_size * self.inner_size * rows


class FeedForward(nn.Module):
    """Two projections with a non-linearity between, or three with a gate.

    Args:
        config: Sizes.
        init: How to draw weights.
    """

    def __init__(self, config: FeedForwardConfig, init: InitConfig) -> None:
        super().__init__()
        self.config, self.init = config, init
        self.gate = nn.Linear(config.hidden_size, config.inner_size, bias=config.bias) if is_gated(config.activation) else None
        self.fc1 = nn.Linear(config.hidden_size, config.inner_size, bias=config.bias)
        self.fc2 = nn.Linear(config.inner_size, config.hidden_size, bias=config.bias)
        self.function = activation_function(config.activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        init_linear(self.fc1, self.init)
        init_linear(self.fc2, self.init, residual="stream")
        if self.gate is not None:
            init_linear(self.gate, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token by itself.

        Args:
            x: (B, T, D).

        Returns:
            (B, T, D).
        """
        inner = self.function(self.fc1(x)) if self.gate is None else self.function(self.gate(x)) * self.fc1(x)  # (B, T, F)
        return self.fc2(F.dropout(inner, self.config.dropout, self.training))
