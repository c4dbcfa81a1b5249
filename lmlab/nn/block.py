"""One layer of a stack: attention, attention to an encoder where there is one, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.config import check_choices
from lmlab.nn.attention import AttentionConfig, CrossAttention, SelfAttention
from lmlab.nn.cache import LayerCache
from lmlab.nn.feedforward import FeedForward, FeedForwardConfig
from lmlab.nn.init import InitConfig
from lmlab.nn.mask import Visibility
from lmlab.nn.norm import NormConfig, build_norm
from lmlab.nn.position import Rotary


class Memory(NamedTuple):
    """What a decoder reads besides its own tokens.

    Args:
        states: (B, S, D) of the encoder.
        visible: Which of them each token may attend.
    """

    states: Tensor
    visible: Visibility


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The parts of a block and how they are joined.

    Args:
        attention: Of both attentions.
        feedforward: Of the feed-forward network.
        norm: Of all normalisations.
        norm_position: `pre` normalises what a part reads, `post` the sum of its input and output.
        dropout: Probability that an element of a part's output is dropped in training, before the sum.
        init: How to draw weights.

    Source: `post`: Vaswani et al. 2017, section 3.1; `pre`: Xiong et al. 2020, table 1.
    """

    attention: AttentionConfig
    feedforward: FeedForwardConfig
    norm: NormConfig
    norm_position: Literal["pre", "post"]
    dropout: float
    init: InitConfig

    def __post_init__(self) -> None:
        """Checks choices."""
        check_choices(self)


class Block(nn.Module):
    """A layer: each part is added to the residual stream.

    Args:
        config: Its parts.
        reads: `memory` adds an attention to an encoder's states.
    """

    def __init__(self, config: BlockConfig, reads: Literal["self", "memory"]) -> None:
        super().__init__()
        self.dropout, self.pre = config.dropout, config.norm_position == "pre"
        size = config.attention.hidden_size
        self.attention_norm = build_norm(config.norm, size)
        self.attention = SelfAttention(config.attention, config.init)
        self.cross_norm = build_norm(config.norm, size) if reads == "memory" else None
        self.cross_attention = CrossAttention(config.attention, config.init) if reads == "memory" else None
        self.feedforward_norm = build_norm(config.norm, size)
        self.feedforward = FeedForward(config.feedforward, config.init)

    def reset_parameters(self) -> None:
        """Draws the weights of all parts anew."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]  # every part has one, and a missing one should fail loudly

    def forward(
        self, x: Tensor, visible: Visibility, rotary: Rotary | None = None, memory: Memory | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Applies the layer.

        Args:
            x: (B, T, D).
            visible: Which tokens of its row each token may attend.
            rotary: Tables to turn queries and keys by.
            memory: The encoder's states, for a block that reads them.
            cache: Earlier tokens.

        Returns:
            (B, T, D).
        """
        x = self._add(x, self.attention(self._before(self.attention_norm, x), visible, rotary, cache), self.attention_norm)
        if self.cross_attention is not None and self.cross_norm is not None and memory is not None:
            read = self.cross_attention(self._before(self.cross_norm, x), memory.states, memory.visible, cache)
            x = self._add(x, read, self.cross_norm)
        return self._add(x, self.feedforward(self._before(self.feedforward_norm, x)), self.feedforward_norm)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre else x

    def _add(self, x: Tensor, out: Tensor, norm: nn.Module) -> Tensor:
        x = x + F.dropout(out, self.dropout, self.training)
        return x if self.pre else norm(x)
