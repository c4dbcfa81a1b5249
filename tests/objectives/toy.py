"""A small text as a data module, without files: for tests of objectives."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule

from lmlab.backbones import BackboneConfig, RecurrentConfig
from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.loader import BatchPlan, OrderedView, WindowCollator, WindowLoader
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.nsp import NextSentence
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.tokenizer import Tokenizer, TokenizerConfig

LENGTH, NUM_EXAMPLES = 16, 40
TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps on, and the fox runs away into the wood."
OBJECTIVES: dict[str, type[Objective]] = {
    "clm": CLM,
    "mlm": MLM,
    "span_corruption": SpanCorruption,
    "nsp": NextSentence,
    "recurrent_lm": RecurrentLM,
}


def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of a few hundred entries."""
    return Tokenizer.train([TEXT] * 3, TokenizerConfig(vocab_size=300, num_sentinels=8))


def objective(name: str, tok: Tokenizer, dropout: float = 0.0, **given: Any) -> Objective:
    """A small objective that is not built yet; `given` goes to its constructor."""
    if name == "recurrent_lm":
        return RecurrentLM(tok, RecurrentConfig(cell="mingru", hidden_size=24, num_layers=2, dropout=dropout), length=LENGTH, **given)
    config = BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, dropout=dropout, num_segments=2 if name == "nsp" else 0)
    return OBJECTIVES[name](tok, config, length=LENGTH, **given)  # type: ignore[call-arg]


class Blocks:
    """Random tokens: blocks that hold one to three documents, or what else a feed asks for, in rows of many lengths."""

    def __init__(self, feed: Feed, tok: Tokenizer) -> None:
        self.feed, self.width, self.tok = feed, feed.length + feed.lookahead, tok
        self.ordinary = np.setdiff1d(np.arange(tok.vocab_size), sorted(tok.special_ids))

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> Example:
        return self.draw(index, 0, 0)

    def draw(self, index: int, position: int, seed: int) -> Example:
        generator = np.random.default_rng(index)
        if self.feed.view == "blocks":
            documents = np.sort(generator.integers(0, 1 + index % 3, self.width))
            return Example(position, index, generator.choice(self.ordinary, self.width), documents, self.width - 1)
        prefix, suffix = self.feed.prefix, self.feed.suffix
        num_texts = 2 if self.feed.view == "sentence_pairs" else 1
        room = (self.width - len(prefix) - num_texts * len(suffix)) // num_texts
        texts = [generator.choice(self.ordinary, generator.integers(2, room + 1)) for _ in range(num_texts)]
        ids = np.concatenate([prefix, *(part for text in texts for part in (text, suffix))]).astype(np.int64)
        extra = {"second_start": len(prefix) + len(texts[0]) + len(suffix), "pair_label": index % 2} if num_texts == 2 else None
        return Example(position, index, ids, np.zeros(len(ids), np.int64), sum(map(len, texts)), extra=extra)


class Toy(LightningDataModule):
    """Feeds an objective from `Blocks`."""

    def __init__(self, feed: Feed, tok: Tokenizer, global_size: int = 8, micro: int = 4) -> None:
        super().__init__()
        self.feed, self.blocks, self.global_size, self.micro = feed, Blocks(feed, tok), global_size, micro

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.trainer.accumulate_grad_batches = self.global_size // self.micro

    def train_dataloader(self) -> WindowLoader:
        plan = BatchPlan(global_size=self.global_size, micro_size=self.micro)
        return WindowLoader(OrderedView(self.blocks, seed=1), WindowCollator(self.feed.collate, plan, 1), 0, 0)  # type: ignore[arg-type]


def batches(name: str, tok: Tokenizer, num: int = 1, size: int = 4) -> list[Batch]:
    """Micro-batches without their stamps."""
    feed = objective(name, tok).feed()
    found = list(islice(Toy(feed, tok, size, size).train_dataloader(), num))
    return [{key: value for key, value in batch.items() if key != "window"} for batch in found]
