"""How fresh weights are drawn: one rule for a whole network, so that two networks differ only where they are meant to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lmlab.config import check_choices, require

TRUNCATION = 2.0
"""Standard deviations at which `truncated` cuts, as TensorFlow's truncated normal does, which BERT was initialised with."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The rule that fresh weights follow.

    Args:
        rule: `normal` and `truncated` draw every matrix with `std`; `t5` draws with 1/sqrt(fan in), the query projection with a
            further 1/sqrt(head size), which stands in for the attention scale that T5 leaves out, and embeddings with 1.
        std: Standard deviation for `normal` and `truncated`.
        depth: L to divide the projections that write to the residual stream by sqrt(2 L); 0 leaves them alone.

    Source: `truncated`: Devlin et al. 2019, released code, `initializer_range`. `depth`: Radford et al. 2019 (GPT-2), section 2.3.
    `t5`: Raffel et al. 2020, released code (mesh TensorFlow `transformer_layers`).
    """

    rule: Literal["normal", "truncated", "t5"] = "normal"
    std: float = 0.02
    depth: int = 0

    def __post_init__(self) -> None:
        """Checks choices and ranges."""
        check_choices(self)
        require(self.std > 0, self, "std", "a spread is positive", "0.02 is what BERT and GPT-2 use")
        require(self.depth >= 0, self, "depth", "a number of layers is not negative", "set 0 to leave residual projections alone")


def init_linear(linear: nn.Linear, config: InitConfig, *, query_head_size: int = 0, residual: Literal["stream", "inner"] = "inner") -> None:
    """Draws a projection's weight and zeroes its bias.

    Args:
        linear: Changed in place; may live on the meta device.
        config: The rule.
        query_head_size: K if this projection makes queries.
        residual: `stream` if the output is added to the residual stream.
    """
    if config.rule == "t5":
        std = linear.in_features**-0.5 * (query_head_size or 1) ** -0.5
    else:
        std = config.std / math.sqrt(2 * config.depth) if residual == "stream" and config.depth else config.std
    _draw(linear.weight, config, std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_embedding(embedding: nn.Embedding, config: InitConfig) -> None:
    """Draws an embedding table.

    Args:
        embedding: Changed in place; may live on the meta device.
        config: The rule.
    """
    _draw(embedding.weight, config, 1.0 if config.rule == "t5" else config.std)


def _draw(weight: Tensor, config: InitConfig, std: float) -> None:
    if config.rule == "truncated":
        nn.init.trunc_normal_(weight, std=std, a=-TRUNCATION * std, b=TRUNCATION * std)
    else:
        nn.init.normal_(weight, std=std)
