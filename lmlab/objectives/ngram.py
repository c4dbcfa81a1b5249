"""An n-gram model: counting, as an objective like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.config import require
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.smoothing import Smoothed, Smoothing
from lmlab.decoding import DecodingConfig, decode
from lmlab.errors import ConfigError
from lmlab.losses import Losses, Part
from lmlab.nn.ngram_table import NGramTable
from lmlab.objectives.clm import CLM, CLMCollator, tells_bytes
from lmlab.objectives.passes import Outcome, Pass, Step
from lmlab.tokenizer import Tokenizer

MAX_ORDER = 5
"""Beyond it, tables grow and a text of some million tokens is predicted no better."""


@dataclass(frozen=True)
class NGramCollator:
    """As for a causal model, and which block of the text each row is."""

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Stacks blocks of T + 1 tokens; adds `index`, (B,) int64."""
        return {**CLMCollator()(examples, seed), "index": torch.tensor([e.index for e in examples])}


class NGram(CLM):
    """Predicts each token from the few before it, by how often they have been seen together.

    It is trained by counting, each token of the text once: a second pass adds nothing. Where a block cuts off a context, training
    finds it in the block before; evaluation, like that of every causal model, does without.

    There is nothing to differentiate and no FLOP is spent, so budgets are in tokens, steps or seconds. What the trainer steps is a
    parameter without elements.

    Args:
        tokenizer: Gives vocabulary and special ids.
        order: Tokens in the longest n-grams, from 1 (how often each token occurs) to 5.
        smoothing: How what was never seen gets its share, see `lmlab.data.smoothing.smooth`.
        length: Tokens in a block, at least the order.

    Source: see `lmlab.data.smoothing.smooth`.
    """

    smoothing: Smoothing

    def __init__(self, tokenizer: Tokenizer, order: int = 5, smoothing: Smoothing = "kneser_ney", length: int = 128) -> None:
        """Stores the settings."""
        super().__init__(tokenizer, length=length)
        self.order, self.smoothing = order, smoothing
        require(1 <= order <= MAX_ORDER, self, "order", f"n-grams of 1 to {MAX_ORDER} tokens are counted", "5 with kneser_ney is best")
        require(smoothing in ("witten_bell", "kneser_ney"), self, "smoothing", "there is no such smoothing", "choose one of the two")
        require(length >= order, self, "length", f"an n-gram of {order} tokens reaches across one edge only", "set it to 128, say")

    def feed(self) -> Feed:
        """Packed blocks with one token of lookahead."""
        collate = NGramCollator()
        return Feed(view="blocks", length=self.length, lookahead=1, prefix=(self.tokenizer.bos_id,), collate=collate, eval_collate=collate)

    def build(self, backbone: nn.Module | None = None) -> None:
        """Makes empty tables."""
        if backbone is not None:
            raise ConfigError("an n-gram model has no backbone to share", where="build(backbone=...)", remedy="leave it out")
        self.table = NGramTable(self.order, self.tokenizer.vocab_size, self.tokenizer.bos_id)
        self.nothing = nn.Parameter(torch.empty(0))
        self.register_buffer("token_bytes", torch.from_numpy(self.tokenizer.token_bytes()), persistent=False)
        self._counts_bytes = tells_bytes(self.tokenizer)

    def setup(self, stage: str) -> None:
        """Refuses several ranks, each of which would count a part of the text."""
        if stage == "fit" and self.trainer.world_size > 1:
            raise ConfigError(
                f"an n-gram model cannot be counted by {self.trainer.world_size} ranks",
                where="trainer.devices",
                why="each would count a part of the text, and know only that",
                remedy="set trainer.devices: 1",
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Steps a parameter without elements, at a learning rate of 0, so that steps are counted as for every objective."""
        return torch.optim.SGD([{"params": [self.nothing], "initial_lr": 0.0}], lr=0.0)

    def passes(self, batch: Batch, step: Step) -> list[Pass]:
        """Counts the batch; the pass that Lightning differentiates is empty."""
        self.table.add(batch["index"], _blocks(batch))
        return [lambda: Outcome(self.nothing.sum())]

    def losses(self, batch: Batch) -> Losses:
        """The negative log-likelihood, in nats, under what was counted so far."""
        nats: float = _nats(self.model, _blocks(batch))  # pyright: ignore[reportCallIssue]  the decorator hides its signature
        labels = batch["labels"].flatten()
        part = Part(torch.tensor(nats, dtype=torch.float32, device=labels.device), batch["counts"][self.part])
        return Losses({self.part: part}, self.monitors(self.nothing, labels, part))

    @property
    def model(self) -> Smoothed:
        """The probabilities by what was counted so far."""
        return self.table.smoothed(self.smoothing)

    def states(self, batch: Batch) -> Tensor:
        """Refuses.

        Raises:
            ConfigError: Always: there are none.
        """
        raise ConfigError("an n-gram model has no hidden states", why="it has counts", remedy="use its `logits`, or another objective")

    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V) float32 logarithms of the probabilities of the next token at each position."""
        ids = batch["input_ids"]
        return torch.from_numpy(np.log(self.model.distributions(ids.cpu().numpy()))).to(ids.device, torch.float32)

    def continue_ids(self, rows: Sequence[Sequence[int]], config: DecodingConfig) -> list[list[int]]:
        """Continues rows of tokens.

        Args:
            rows: Tokens of each prompt, BOS included.
            config: How tokens are chosen.
        """
        read = [list(row[:-1]) for row in rows]

        def logits_of(tokens: Tensor) -> Tensor:
            for row, token in zip(read, tokens[:, 0].tolist(), strict=True):
                row.append(token)
            latest = [torch.tensor([row[-self.order :]]) for row in read]
            return torch.cat([self.logits({"input_ids": ids})[:, -1] for ids in latest]).to(self.device)

        stop = {self.tokenizer.eos_id, self.tokenizer.bos_id}
        first = torch.tensor([[row[-1]] for row in rows], device=self.device)
        return decode(logits_of, first, rows, config, stop, self.tokenizer.special_ids - stop)

    def flops(self, batch: Batch) -> int:
        """None: whole numbers are added up."""
        return 0


def _blocks(batch: Batch) -> Tensor:
    return torch.cat([batch["input_ids"], batch["labels"][:, -1:]], dim=1)


@torch.compiler.disable  # which would make torch of numpy
def _nats(model: Smoothed, blocks: Tensor) -> float:
    return float(-np.log(model.probabilities(blocks.cpu().numpy())).sum())
