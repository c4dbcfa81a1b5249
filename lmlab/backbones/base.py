"""What a backbone is: its config, and what every backbone can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lmlab.config import check_choices, require
from lmlab.errors import ConfigError
from lmlab.nn.attention import AttentionConfig
from lmlab.nn.block import BlockConfig
from lmlab.nn.feedforward import Activation, FeedForwardConfig, is_gated
from lmlab.nn.init import InitConfig, init_embedding
from lmlab.nn.norm import NormConfig

GATED_RATIO = 8 / 3
"""Inner width over D of a gated feed-forward network that has as many weights as a plain one of 4 D (Shazeer 2020, section 3)."""
GATED_MULTIPLE = 32
"""That width is rounded up to a multiple of this, which keeps matrix kernels on their fast path."""
ABSOLUTE = ("learned", "sinusoidal")
B = TypeVar("B", bound="Backbone")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Everything that shapes a backbone; the same config makes an encoder, a decoder or both, so that objectives can be compared.

    The defaults are today's common choices (Llama's: pre-normalised, RMSNorm, rotary positions, SwiGLU, no biases) at a size that
    trains on a laptop. BERT, RoBERTa, GPT-2, Llama, T5 and T5 1.1 are exact settings: see `lmlab.backbones.pretrained`.

    Args:
        hidden_size: D, width of the residual stream.
        num_layers: L, layers of the encoder or decoder.
        num_decoder_layers: Layers of the decoder beside an encoder; None is `num_layers`.
        num_heads: H, query heads.
        num_kv_heads: Key and value heads, a divisor of H; None is H, 1 is multi-query attention.
        head_size: K; None is D / H.
        feedforward_size: F; None is 4 D, or 8/3 D rounded up to a multiple of 32 for a gated activation.
        activation: Non-linearity of the feed-forward network.
        norm: Kind of all normalisations.
        norm_eps: Their epsilon.
        norm_position: Before each part of a layer, or after each sum.
        final_norm: After the last layer; `auto` is `norm` for pre-normalised networks, which need it, and `none` for the others.
        position: How order is known. `learned` and `sinusoidal` are added to the embeddings, `rope` turns queries and keys, `t5` and
            `alibi` are added to attention scores.
        max_length: Longest row, for `learned` positions; the others have no limit.
        position_offset: Rows of the learned table before position 0 (RoBERTa: its padding id + 1).
        position_counting: Whether padding takes up position numbers when none are given (RoBERTa: `real`, it does not).
        rope_base: Of the rotary wavelengths.
        relative_buckets: Buckets of T5's relative positions.
        relative_max_distance: Distance from which these share the last bucket.
        num_segments: Segment types of BERT's sentence pairs; 0 for none.
        embedding_size: E, width of the token embeddings; None is D. A smaller one is projected up (ALBERT, ELECTRA).
        embedding_norm: Whether the sum of embeddings is normalised (BERT).
        embedding_scale: Factor on token embeddings (Vaswani et al. 2017: sqrt(D)).
        qkv_bias: Bias of the query, key and value projections.
        out_bias: Bias of attention's output projection.
        feedforward_bias: Bias of the feed-forward projections, and of the projection from E to D.
        norm_bias: Shift of a LayerNorm.
        head_bias: A bias per vocabulary entry in the output head.
        attention_scale: Factor on attention scores; None is 1/sqrt(K). T5: 1.
        logit_scale: Factor on what the output head reads. T5 with tied embeddings: 1/sqrt(D).
        mlm_transform: Whether the MLM head has BERT's extra layer (dense, activation, norm) before the vocabulary.
        tie: Whether the output head uses the token embeddings.
        dropout: On embeddings and on what each part adds to the residual stream.
        embedding_dropout: On embeddings; None is `dropout`.
        attention_dropout: On attention weights. On CPU any value above 0 gives up the fast attention kernel.
        feedforward_dropout: After the activation (T5).
        output_dropout: On the final hidden states (T5).
        init: Rule for fresh weights, see `lmlab.nn.init.InitConfig`.
        init_std: Its standard deviation.
        residual_init: `depth_scaled` divides projections into the residual stream by sqrt(2 L) (GPT-2).
        checkpointing: `blocks` recomputes each layer in the backward pass: less memory, a third more time.
    """

    hidden_size: int = 256
    num_layers: int = 4
    num_decoder_layers: int | None = None
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_size: int | None = None
    feedforward_size: int | None = None
    activation: Activation = "swiglu"
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_position: Literal["pre", "post"] = "pre"
    final_norm: Literal["auto", "norm", "none"] = "auto"
    position: Literal["rope", "learned", "sinusoidal", "t5", "alibi", "none"] = "rope"
    max_length: int = 512
    position_offset: int = 0
    position_counting: Literal["all", "real"] = "all"
    rope_base: float = 10000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    num_segments: int = 0
    embedding_size: int | None = None
    embedding_norm: Literal["none", "norm"] = "none"
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    feedforward_bias: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    attention_scale: float | None = None
    logit_scale: float = 1.0
    mlm_transform: Literal["none", "dense"] = "none"
    tie: Literal["tied", "untied"] = "tied"
    dropout: float = 0.0
    embedding_dropout: float | None = None
    attention_dropout: float = 0.0
    feedforward_dropout: float = 0.0
    output_dropout: float = 0.0
    init: Literal["normal", "truncated", "t5"] = "normal"
    init_std: float = 0.02
    residual_init: Literal["plain", "depth_scaled"] = "depth_scaled"
    checkpointing: Literal["none", "blocks"] = "none"

    def __post_init__(self) -> None:
        """Refuses what cannot be built, and settings that would have no effect."""
        check_choices(self)
        for name in ("hidden_size", "num_layers", "num_heads", "max_length"):
            require(getattr(self, name) >= 1, self, name, "a size is at least 1", "set a positive number")
        for name in ("num_decoder_layers", "num_kv_heads", "head_size", "feedforward_size", "embedding_size"):
            require(
                getattr(self, name) is None or getattr(self, name) >= 1,
                self,
                name,
                "a size is at least 1",
                "set a positive number, or null",
            )
        for name in ("dropout", "embedding_dropout", "attention_dropout", "feedforward_dropout", "output_dropout"):
            require(
                0 <= (getattr(self, name) or 0) < 1, self, name, "a probability of dropping is in [0, 1)", "0 turns it off, 0.1 is common"
            )
        for name in ("embedding_scale", "logit_scale", "attention_scale", "rope_base"):
            value = getattr(self, name)
            require(value is None or 0 < value < inf, self, name, "it is positive and finite", "leave it out for the usual value")
        self._check_heads()
        self._check_positions()
        plain_norm = self.norm == "layernorm" or not self.norm_bias
        require(plain_norm, self, "norm_bias", "an RMSNorm has no shift", "set it to false, or norm to layernorm")
        plain_init = self.init != "t5" or self.residual_init == "plain"
        require(plain_init, self, "residual_init", "the t5 rule scales by fan-in only", "set it to plain")
        own_std = self.init != "t5" or self.init_std == type(self).init_std
        require(own_std, self, "init_std", "the t5 rule takes its deviations from the sizes", "leave it out, or set init to normal")
        require(self.num_segments >= 0, self, "num_segments", "a count is not negative", "0 for none, 2 for sentence pairs")
        require(self.norm_eps > 0, self, "norm_eps", "it keeps the division finite", "1e-6 is common")
        require(self.init_std > 0, self, "init_std", "a spread is positive", "0.02 is what BERT and GPT-2 use")

    def _check_heads(self) -> None:
        divides = self.head_size is not None or self.hidden_size % self.num_heads == 0
        rule = f"it must divide hidden_size = {self.hidden_size} unless head_size is given"
        require(divides, self, "num_heads", rule, "change one of the two, or set head_size")
        grouped = self.num_heads % (self.num_kv_heads or self.num_heads) == 0
        require(grouped, self, "num_kv_heads", f"it must divide num_heads = {self.num_heads}", "choose a divisor, or null for all heads")

    def _check_positions(self) -> None:
        for name, position in (("rope_base", "rope"), ("relative_buckets", "t5"), ("relative_max_distance", "t5")):
            read = self.position == position or getattr(self, name) == getattr(type(self), name)
            require(read, self, name, f"only {position} positions read it", f"leave it out, or set position to {position}")
        even = self.position != "rope" or self.head_width % 2 == 0
        require(
            even,
            self,
            "position",
            f"rotary positions turn pairs of channels, and head size {self.head_width} is odd",
            "make head_size even",
        )
        even = self.position != "sinusoidal" or self.vector_size % 2 == 0
        require(even, self, "position", f"sines and cosines come in pairs, and width {self.vector_size} is odd", "make embedding_size even")
        shifted = self.position_offset == 0 or (self.position == "learned" and self.position_offset > 0)
        require(shifted, self, "position_offset", "only a learned table has rows to skip", "set it to 0, or position to learned")
        counted = self.position_counting == "all" or (self.position == "learned" and self.position_offset > 0)
        rule = "padding needs a row before position 0 of a learned table"
        require(counted, self, "position_counting", rule, "set it to all, or position to learned and position_offset to the padding id + 1")
        if self.position == "t5":
            require(
                self.relative_buckets >= 4 and self.relative_buckets % 4 == 0,
                self,
                "relative_buckets",
                "both directions have near and far halves",
                "use a multiple of 4",
            )
            far = self.relative_max_distance > self.relative_buckets // 2
            require(
                far,
                self,
                "relative_max_distance",
                f"near buckets already reach {self.relative_buckets // 2}",
                "set a longer distance, or fewer buckets",
            )

    @property
    def head_width(self) -> int:
        """K."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def vector_size(self) -> int:
        """E, width of the token embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def inner_size(self) -> int:
        """F."""
        if self.feedforward_size is not None:
            return self.feedforward_size
        if is_gated(self.activation):
            return -(-int(GATED_RATIO * self.hidden_size) // GATED_MULTIPLE) * GATED_MULTIPLE
        return 4 * self.hidden_size

    def norm_config(self) -> NormConfig:
        """Of every normalisation."""
        return NormConfig(kind=self.norm, eps=self.norm_eps, bias=self.norm_bias)

    def init_config(self, num_layers: int = 0) -> InitConfig:
        """Of every fresh weight, in a stack of `num_layers`."""
        return InitConfig(rule=self.init, std=self.init_std, depth=num_layers if self.residual_init == "depth_scaled" else 0)

    def block_config(self, num_layers: int) -> BlockConfig:
        """Of every layer, in a stack of `num_layers`."""
        attention = AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_size=self.head_width,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            scale=self.attention_scale,
            dropout=self.attention_dropout,
        )
        feedforward = FeedForwardConfig(
            hidden_size=self.hidden_size,
            inner_size=self.inner_size,
            activation=self.activation,
            bias=self.feedforward_bias,
            dropout=self.feedforward_dropout,
        )
        return BlockConfig(
            attention=attention,
            feedforward=feedforward,
            norm=self.norm_config(),
            norm_position=self.norm_position,
            dropout=self.dropout,
            init=self.init_config(num_layers),
        )


class Backbone(nn.Module, ABC):
    """Token ids in, hidden states out. A head may share `embedding`; a strategy shards `blocks`.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token, for families that do not count padding as a position.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, pad_id: int) -> None:
        super().__init__()
        self.check(config)
        self.config, self.vocab_size, self.pad_id = config, vocab_size, pad_id
        self.embedding = nn.Embedding(vocab_size, config.vector_size)
        init_embedding(self.embedding, config.init_config())

    @classmethod
    def check(cls, config: BackboneConfig, lengths: Mapping[str, int] | None = None) -> None:
        """Refuses a config that this kind of backbone would not follow, or rows it could not read: before anything is built.

        Args:
            config: Its shape.
            lengths: Rows it is meant for, in tokens, by the name of the setting that decides them.

        Raises:
            ConfigError: If a setting would have no effect here, or learned positions run out.
        """
        for name, length in (lengths or {}).items():
            if config.position == "learned" and length > config.max_length:
                raise ConfigError(
                    f"rows of {length} tokens do not fit into {config.max_length} learned positions",
                    where=f"backbone.max_length, {name}",
                    why=f"backbone.max_length = {config.max_length} is less than the {length} tokens that {name} asks for",
                    remedy=f"set backbone.max_length to {length}, shorten {name}, or use another kind of position",
                )

    @classmethod
    def expect(cls: type[B], backbone: nn.Module) -> B:
        """Takes a built backbone that something else wants to share.

        Args:
            backbone: What it offers.

        Raises:
            ConfigError: If it is of another kind: an encoder in place of a decoder would let tokens see what they are to predict.
        """
        if not isinstance(backbone, cls):
            raise ConfigError(
                f"a backbone of kind {type(backbone).__name__} cannot be shared here",
                where="build(backbone=...)",
                why=f"what is built on it reads rows as a backbone of kind {cls.__name__} does",
                remedy=f"pass a backbone of kind {cls.__name__}, or none, to have one built",
            )
        return backbone

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The layers, in the order they run."""

    @abstractmethod
    def flops(self, batch_size: int, length: int, decoder_length: int | None = None) -> int:
        """Multiplications and additions of one forward pass, matrices and attention, as computed: causal attention counts in full.

        Args:
            batch_size: B.
            length: T, padding included; of the encoder's side where there are two.
            decoder_length: Of the decoder's side, where there are two.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws all weights anew, for example after `to_empty` of a backbone built on the meta device."""

    def num_parameters(self, embeddings: Literal["with", "without"] = "with") -> int:
        """Counts weights.

        Args:
            embeddings: Whether tables of tokens, positions and segments count.
        """
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if embeddings == "without" else set()
        return sum(p.numel() for p in self.parameters() if id(p) not in tables)

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Looks token vectors up, unless they are given.

        Args:
            input_ids: (B, T) int64.
            inputs_embeds: (B, T, E) to use instead, before positions are added.

        Raises:
            ConfigError: If there is neither.
        """
        if inputs_embeds is not None:
            return inputs_embeds
        if input_ids is None:
            raise ConfigError("a backbone was called without tokens", why="input_ids and inputs_embeds are both None", remedy="pass one")
        return self.embedding(input_ids)

    def count_positions(self, input_ids: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
        """Numbers the real tokens of each row, for families that skip padding.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64; kept if given.

        Returns:
            (B, T) int64 with -1 at padding, or None to number all places.

        Source: Liu et al. 2019 (RoBERTa), released code (`make_positions` of fairseq).
        """
        if position_ids is not None or self.config.position_counting == "all" or input_ids is None:
            return position_ids
        real = input_ids != self.pad_id
        return torch.where(real, real.long().cumsum(dim=1), 0) - 1
