"""Backbones from before attention, and one from after it: a fixed window, plain recurrence, LSTM, minGRU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.config import check_choices, require
from lmlab.nn.feedforward import FeedForward, FeedForwardConfig
from lmlab.nn.init import init_embedding, init_linear
from lmlab.nn.norm import build_norm
from lmlab.nn.recurrent import MinGRU, Recurrence, WindowLayer

DEFAULT_WINDOW = 5
"""Tokens that `bengio` sees where nothing is said: as many as a 6-gram."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Everything that shapes a causal backbone without attention.

    Args:
        cell: `bengio`: one hidden layer over the latest tokens, side by side. `rnn`: Elman's network. `lstm`. `mingru`: gates that see
            the present token only; in blocks, each followed by a feed-forward network, as attention is in a transformer.
        hidden_size: D.
        num_layers: L; 1 for `bengio`.
        embedding_size: E, width of the token embeddings; None is D.
        window: Tokens that `bengio` sees, the present one included; None is 5.
        direct: `direct` connects the window of `bengio` with the output, beside the hidden layer.
        head_bias: A bias per vocabulary entry in the output head.
        tie: Whether the output head uses the token embeddings.
        dropout: On embeddings, between layers, and on the last states; in `mingru` on what each part adds.
        init_std: Standard deviation of fresh embeddings, head and `mingru` weights; the others are torch's own.

    Source: `bengio`: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, equation 1. `rnn`: Elman 1990, "Finding
    Structure in Time"; Mikolov et al. 2010. `lstm`: Hochreiter & Schmidhuber 1997; with forget gates, Gers et al. 2000; where dropout
    acts: Zaremba et al. 2014, section 3.2. `mingru`: Feng et al. 2024, "Were RNNs All We Needed?", section 3.1.
    """

    cell: Literal["bengio", "rnn", "lstm", "mingru"] = "lstm"
    hidden_size: int = 256
    num_layers: int = 1
    embedding_size: int | None = None
    window: int | None = None
    direct: Literal["none", "direct"] = "none"
    head_bias: bool = True
    tie: Literal["tied", "untied"] = "tied"
    dropout: float = 0.0
    init_std: float = 0.1

    def __post_init__(self) -> None:
        """Refuses what cannot be built, and settings that would have no effect."""
        check_choices(self)
        for name in ("hidden_size", "num_layers", "embedding_size", "window"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "a size is at least 1", "set a positive number")
        require(0 <= self.dropout < 1, self, "dropout", "a probability of dropping is in [0, 1)", "0 turns it off, 0.1 is common")
        require(self.init_std > 0, self, "init_std", "a spread is positive", "0.1 learns fast, 0.02 is GPT-2's")
        windowed = self.cell == "bengio"
        require(windowed or self.window is None, self, "window", "only bengio has a window", "leave it out, or set cell to bengio")
        require(windowed or self.direct == "none", self, "direct", "only bengio has a window to connect", "leave it out")
        require(not windowed or self.num_layers == 1, self, "num_layers", "bengio has one hidden layer", "leave it out")
        untied = self.direct == "none" or self.tie == "untied"
        require(untied, self, "tie", "direct connections have weights of their own in the output", "set it to untied, or direct to none")

    @property
    def vector_size(self) -> int:
        """E."""
        return self.embedding_size or self.hidden_size

    @property
    def window_size(self) -> int:
        """Tokens that `bengio` sees."""
        return self.window or DEFAULT_WINDOW

    @property
    def output_size(self) -> int:
        """Width of what the head reads: D, and the window behind it if that is connected."""
        return self.hidden_size + (self.window_size * self.vector_size if self.direct == "direct" else 0)

    def head_config(self) -> BackboneConfig:
        """What a head is to know of this backbone."""
        return BackboneConfig(
            hidden_size=self.output_size,
            num_heads=1,
            embedding_size=self.vector_size,
            position="none",
            head_bias=self.head_bias,
            tie=self.tie,
            init_std=self.init_std,
        )


class MinGRUBlock(nn.Module):
    """The block of a transformer with a recurrence in the place of attention: each part reads normalised states and adds to them.

    Args:
        config: Sizes.
        num_layers: L, which scales fresh weights.
        dropout: On what each part adds.
    """

    def __init__(self, config: BackboneConfig, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout, init = dropout, config.init_config(num_layers)
        inner = FeedForwardConfig(
            hidden_size=config.hidden_size, inner_size=config.inner_size, activation=config.activation, bias=False, dropout=0.0
        )
        self.recurrence_norm = build_norm(config.norm_config(), config.hidden_size)
        self.recurrence = MinGRU(config.hidden_size, init)
        self.feedforward_norm = build_norm(config.norm_config(), config.hidden_size)
        self.feedforward = FeedForward(inner, init)

    def reset_parameters(self) -> None:
        """Draws the weights of all parts anew."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]  # every part has one, and a missing one should fail loudly

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """From (B, T, D) to (B, T, D)."""
        x = x + F.dropout(self.recurrence(self.recurrence_norm(x), document_ids), self.dropout, self.training)
        return x + F.dropout(self.feedforward(self.feedforward_norm(x)), self.dropout, self.training)

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over `rows` tokens."""
        return self.recurrence.flops(rows) + self.feedforward.config.flops(rows)


class Recurrent(Backbone):
    """Hidden states for causal language models, without attention.

    Args:
        config: Its shape.
        vocab_size: V.
        pad_id: Id of the padding token.
    """

    def __init__(self, config: RecurrentConfig, vocab_size: int, pad_id: int) -> None:
        shape = config.head_config()
        super().__init__(shape, vocab_size, pad_id)
        self.dropout, width, size = config.dropout, config.vector_size, config.hidden_size
        residual = config.cell == "mingru"
        self.projection = nn.Linear(width, size, bias=False) if residual and width != size else None
        self.layers = nn.ModuleList([self._layer(config) for _ in range(config.num_layers if residual else 1)])
        self.final_norm = build_norm(shape.norm_config(), size) if residual else None
        self.reset_parameters()

    def _layer(self, config: RecurrentConfig) -> nn.Module:
        width, size = config.vector_size, config.hidden_size
        if config.cell == "mingru":
            return MinGRUBlock(self.config, config.num_layers, config.dropout)
        if config.cell == "bengio":
            return WindowLayer(width, size, config.window_size, config.direct, config.init_std)
        between = config.dropout if config.num_layers > 1 else 0.0  # torch warns of one without a layer to follow
        kind = nn.LSTM if config.cell == "lstm" else nn.RNN
        return Recurrence(kind(width, size, config.num_layers, batch_first=True, dropout=between))

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in the order they run; those of a recurrent module of torch are one."""
        return self.layers

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        init_embedding(self.embedding, self.config.init_config())
        if self.projection is not None:
            init_linear(self.projection, self.config.init_config())
        for part in (*self.layers, self.final_norm):
            if part is not None:
                part.reset_parameters()  # type: ignore[operator]  # layers are typed as plain modules by ModuleList

    def forward(self, input_ids: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
        """Reads rows from left to right.

        Args:
            input_ids: (B, T) int64.
            document_ids: (B, T) int64, which document each token belongs to; each starts anew. None if a row is one.

        Returns:
            (B, T, `output_size`).
        """
        x = F.dropout(self.embedding(input_ids), self.dropout, self.training)
        if self.projection is not None:
            x = self.projection(x)
        for layer in self.layers:
            x = layer(x, document_ids)
        # a residual stream has lost what it should within the blocks
        return F.dropout(x, self.dropout, self.training) if self.final_norm is None else self.final_norm(x)

    def flops(self, batch_size: int, length: int, decoder_length: int | None = None) -> int:
        """Multiplications and additions of the matrix products of one forward pass; see `Backbone.flops`."""
        rows = batch_size * length
        up = 0 if self.projection is None else 2 * rows * self.projection.weight.numel()
        return up + sum(layer.flops(rows) for layer in self.layers)  # type: ignore[operator]  # as above
