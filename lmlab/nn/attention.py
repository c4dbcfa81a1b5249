"""Multi-head attention, with grouped keys and values, over a token's own row or over an encoder's states."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.config import require
from lmlab.nn import explicit
from lmlab.nn.cache import KeysValues, LayerCache
from lmlab.nn.init import InitConfig, init_linear
from lmlab.nn.mask import Visibility, causal_scores
from lmlab.nn.position import Rotary, rotate
from lmlab.nn.varlen import attend_segments


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Sizes and constants of an attention.

    Args:
        hidden_size: D.
        num_heads: H query heads.
        num_kv_heads: G key and value heads, each shared by H / G query heads.
        head_size: K; H * K need not be D.
        qkv_bias: Whether the three input projections have a bias.
        out_bias: Whether the output projection has one.
        scale: Factor on the scores before the softmax; None is 1/sqrt(K).
        dropout: Probability that an attention weight is dropped in training.

    Source: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023, section 2.2.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    qkv_bias: bool
    out_bias: bool
    scale: float | None
    dropout: float

    def __post_init__(self) -> None:
        """Checks that heads can be grouped."""
        require(
            self.num_heads % self.num_kv_heads == 0,
            self,
            "num_kv_heads",
            f"it must divide num_heads = {self.num_heads}",
            "choose a divisor",
        )

    def flops(self, rows: int, memory_rows: int, pairs: int) -> int:
        """Multiplications and additions of a forward pass.

        Args:
            rows: B * T queries.
            memory_rows: B * S keys.
            pairs: B * T * S, all of them: a causal attention is counted as if it computed the masked half, as SDPA without a flash
                kernel does and as flop counters do.
        """
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return 2 * (self.hidden_size * (2 * queries * rows + 2 * keys * memory_rows) + 2 * queries * pairs)


class Attention(nn.Module, ABC):
    """The projections, and what both kinds of attention share.

    Args:
        config: Sizes.
        init: How to draw weights.
    """

    def __init__(self, config: AttentionConfig, init: InitConfig) -> None:
        super().__init__()
        self.config, self.init = config, init
        queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.q = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o = nn.Linear(queries, config.hidden_size, bias=config.out_bias)
        self.query_shape = (config.num_heads, config.head_size)
        self.key_shape = (config.num_kv_heads, config.head_size)
        self.grouped = config.num_kv_heads != config.num_heads
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        init_linear(self.q, self.init, query_head_size=self.config.head_size)
        init_linear(self.k, self.init)
        init_linear(self.v, self.init)
        init_linear(self.o, self.init, residual="stream")

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Visibility) -> Tensor:
        """Mixes values by the softmax of scores, and projects the result.

        Args:
            query: (B, T, H, K).
            key: (B, S, G, K).
            value: (B, S, G, K).
            visible: Who sees whom.

        Returns:
            (B, T, D). A query that may attend nothing gets the output projection's bias, not NaN.
        """
        dropout = self.config.dropout if self.training else 0.0
        if visible.segments is not None:
            mixed = attend_segments(query, key, value, visible.segments, causal=visible.causal, scale=self.config.scale)
        elif explicit.preferable(query, key):
            added = causal_scores(query.shape[1], query.dtype, query.device) if visible.causal else visible.scores
            mixed = explicit.attend_explicitly(query, key, value, added, scale=self.config.scale, dropout=dropout)
        else:
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                attn_mask=visible.scores,
                dropout_p=dropout,
                is_causal=visible.causal,
                scale=self.config.scale,
                enable_gqa=self.grouped,
            ).transpose(1, 2)  # (B, T, H, K)
        return self.o(mixed.flatten(2))


class SelfAttention(Attention):
    """Attention of a row's tokens to each other."""

    def forward(self, x: Tensor, visible: Visibility, rotary: Rotary | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attends.

        Args:
            x: (B, T, D).
            visible: Who sees whom.
            rotary: Tables to turn queries and keys by.
            cache: Earlier tokens, to attend and to add these to.

        Returns:
            (B, T, D).
        """
        lead = x.shape[:2]
        query = self.q(x).view(*lead, *self.query_shape)
        key = self.k(x).view(*lead, *self.key_shape)
        value = self.v(x).view(*lead, *self.key_shape)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            key, value = cache.append(key, value)
        return self.attend(query, key, value, visible)


class CrossAttention(Attention):
    """Attention of a decoder's tokens to an encoder's states."""

    def forward(self, x: Tensor, memory: Tensor, visible: Visibility, cache: LayerCache | None = None) -> Tensor:
        """Attends.

        Args:
            x: (B, T, D).
            memory: (B, S, D) states of the encoder; not looked at again once the cache holds their keys and values.
            visible: Who sees whom.
            cache: Keeps the keys and values of `memory` after the first call.

        Returns:
            (B, T, D).
        """
        query = self.q(x).view(*x.shape[:2], *self.query_shape)
        kept = cache.memory if cache is not None else None
        if kept is None:
            shape = (*memory.shape[:2], *self.key_shape)
            kept = KeysValues(self.k(memory).view(shape), self.v(memory).view(shape))
            if cache is not None:
                cache.memory = kept
        return self.attend(query, *kept, visible)
