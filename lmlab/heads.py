"""From hidden states to scores: for each entry of the vocabulary, for a pair of sentences."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.backbones.base import BackboneConfig
from lmlab.data.batch import IGNORE_INDEX
from lmlab.errors import ConfigError
from lmlab.nn.cross_entropy import linear_cross_entropy
from lmlab.nn.feedforward import activation_function
from lmlab.nn.init import init_linear
from lmlab.nn.norm import build_norm


class VocabularyHead(nn.Module, ABC):
    """Scores over the vocabulary. Give it only the rows that carry a loss: it is often the dearest layer of a small model.

    A tied head holds the embedding without owning it, so the table appears once in a state dict, under the backbone's name.

    Args:
        config: Of the backbone below it.
        vocab_size: V.
        embedding: The backbone's token embedding; used if `config.tie` is `tied`.
        in_size: Width of what is multiplied by the vocabulary matrix.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, embedding: nn.Embedding | None, in_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.in_size = config, vocab_size, in_size
        self.decoder = nn.Linear(in_size, vocab_size, bias=config.head_bias) if config.tie == "untied" else None
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if config.tie == "tied" and config.head_bias else None
        if config.tie == "tied" and embedding is None:
            raise ConfigError(
                "a tied head needs the token embedding", where="backbone.tie", remedy="pass backbone.embedding, or set tie to untied"
            )
        self._tied = (embedding,)  # in a tuple, so that it is not registered as this module's own

    @property
    def weight(self) -> Tensor:
        """The vocabulary matrix, (V, `in_size`)."""
        if self.decoder is not None:
            return self.decoder.weight
        assert self._tied[0] is not None
        return self._tied[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The vocabulary bias, (V,), if there is one."""
        return self.output_bias if self.decoder is None else self.decoder.bias

    @abstractmethod
    def project(self, rows: Tensor) -> Tensor:
        """What is multiplied by `weight`: for losses that never hold all logits at once.

        Args:
            rows: (..., D) hidden states.

        Returns:
            (..., `in_size`).
        """

    def forward(self, rows: Tensor) -> Tensor:
        """Scores rows.

        Args:
            rows: (..., D) hidden states, usually (N, D): the supervised ones only.

        Returns:
            (..., V) logits.
        """
        vectors = self._scaled(rows)
        return F.linear(vectors, self.weight, self.output_bias) if self.decoder is None else self.decoder(vectors)

    def nats(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, summed; on a CPU without ever holding all logits, which is faster.

        Args:
            rows: (N, D) hidden states.
            labels: (N,) int64; `IGNORE_INDEX` where there is no loss.

        Returns:
            () float32.
        """
        plain = self.decoder is None or type(self.decoder) is nn.Linear  # not wrapped or parametrised by an adaptation
        if plain and rows.device.type == "cpu" and not torch.compiler.is_compiling():
            return linear_cross_entropy(self._scaled(rows), self.weight, self.bias, labels)
        return F.cross_entropy(self(rows).float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")

    def _scaled(self, rows: Tensor) -> Tensor:
        vectors = self.project(rows)
        return vectors if self.config.logit_scale == 1.0 else vectors * self.config.logit_scale

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over N `rows`."""
        return 2 * rows * self.in_size * self.vocab_size + self._project_flops(rows)

    @abstractmethod
    def _project_flops(self, rows: int) -> int: ...

    def reset_parameters(self) -> None:
        """Draws the weights anew; those of a tied embedding are its owner's to draw."""
        init = self.config.init_config()
        if self.decoder is not None:
            init_linear(self.decoder, init)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)


class LMHead(VocabularyHead):
    """Nothing but the vocabulary matrix (GPT-2, Llama, T5), and a projection first if the tied embedding is narrower than D.

    Args:
        config: Of the backbone below it.
        vocab_size: V.
        embedding: The backbone's token embedding; used if `config.tie` is `tied`.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, embedding: nn.Embedding | None) -> None:
        super().__init__(config, vocab_size, embedding, config.vector_size if config.tie == "tied" else config.hidden_size)
        narrower = self.in_size != config.hidden_size
        self.dense = nn.Linear(config.hidden_size, self.in_size, bias=config.feedforward_bias) if narrower else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        super().reset_parameters()
        if self.dense is not None:
            init_linear(self.dense, self.config.init_config())

    def project(self, rows: Tensor) -> Tensor:
        """Brings (..., D) to (..., E)."""
        return rows if self.dense is None else self.dense(rows)

    def _project_flops(self, rows: int) -> int:
        return 0 if self.dense is None else 2 * rows * self.config.hidden_size * self.in_size


class MLMHead(VocabularyHead):
    """The head of masked language models: BERT's transform (dense, activation, norm) if the config asks for it, then the vocabulary.

    Args:
        config: Of the backbone below it.
        vocab_size: V.
        embedding: The backbone's token embedding; used if `config.tie` is `tied`.

    Source: Devlin et al. 2019, released code (`get_masked_lm_output`).
    """

    def __init__(self, config: BackboneConfig, vocab_size: int, embedding: nn.Embedding | None) -> None:
        super().__init__(config, vocab_size, embedding, config.vector_size)
        transforms = config.mlm_transform == "dense"
        bias = transforms or config.feedforward_bias
        self.dense = nn.Linear(config.hidden_size, self.in_size, bias=bias) if transforms or self.in_size != config.hidden_size else None
        self.norm = build_norm(config.norm_config(), self.in_size) if transforms else None
        self.function = activation_function(config.activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        super().reset_parameters()
        if self.dense is not None:
            init_linear(self.dense, self.config.init_config())
        if self.norm is not None:
            self.norm.reset_parameters()

    def project(self, rows: Tensor) -> Tensor:
        """Brings (..., D) to (..., E), through the transform if there is one."""
        if self.dense is not None:
            rows = self.dense(rows)
        if self.norm is None:
            return rows
        return self.norm(self.function(rows).to(self.norm.weight.dtype))  # autocast leaves norms in full precision

    def _project_flops(self, rows: int) -> int:
        return 0 if self.dense is None else 2 * rows * self.config.hidden_size * self.in_size


class PairHead(nn.Module):
    """BERT's pooler (dense and tanh) and two scores: of a true pair and of a false one.

    Args:
        config: Of the backbone below it.

    Source: Devlin et al. 2019, released code (`pooler`, `get_next_sentence_output`).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        for layer in (self.pooler, self.classifier):
            init_linear(layer, self.config.init_config())

    def forward(self, first: Tensor) -> Tensor:
        """Scores pairs.

        Args:
            first: (B, D) states of the first token of each row.

        Returns:
            (B, 2).
        """
        return self.classifier(torch.tanh(self.pooler(first)))

    def flops(self, rows: int) -> int:
        """Multiplications and additions of a forward pass over B `rows`."""
        return 2 * rows * self.config.hidden_size * (self.config.hidden_size + 2)
